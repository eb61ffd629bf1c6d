//! The tools without the broker: `kafka-tool kafka-topics --list …`. What `e2e/cli/compare` runs
//! until told otherwise.

use std::io::Write;

use letterbox_env::Env;

fn main() -> std::process::ExitCode {
    let mut args = std::env::args().skip(1);
    let tool = args.next().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be built");
    let (mut stdout, mut stderr) = (std::io::BufWriter::new(std::io::stdout()), std::io::stderr());
    let code = runtime.block_on(async {
        let mut stdin = letterbox_cli::stdin().expect("there is standard input");
        let streams =
            letterbox_cli::Streams { stdin: &mut stdin, stdout: &mut stdout, stderr: &mut stderr };
        letterbox_cli::run(Env::real(), &tool, args.collect(), streams).await
    });
    let _ = stdout.flush();
    // Reading standard input goes on in a thread of its own, which is not waited for.
    runtime.shutdown_background();
    std::process::ExitCode::from(u8::try_from(code).unwrap_or(1))
}
