//! The real world.
#![allow(
    clippy::disallowed_methods,
    reason = "the one place where the outside world is called directly"
)]

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use futures::FutureExt;
use rustix::fs::{AtFlags, CWD, FileType, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::disk::create_dir_all_durably;
use crate::{
    BoxFuture, BoxListener, BoxStream, Clock, DirEntry, Disk, Env, File, FileRef, Listener, Net,
    OpenMode, Random, Stream, Tasks, TryWrite, not_synced, panics,
};

pub(crate) fn env() -> Env {
    Env {
        net: Arc::new(RealNet),
        disk: Arc::new(RealDisk::default()),
        clock: Arc::new(RealClock),
        random: Arc::new(RealRandom),
        tasks: Arc::new(RealTasks),
    }
}

struct RealClock;

impl Clock for RealClock {
    fn wall_ms(&self) -> i64 {
        // Before 1970 the broker runs, with times of 0.
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
    }
}

struct RealRandom;

impl Random for RealRandom {
    fn fill(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the system's source of randomness works");
    }
}

/// The threads for [`Tasks::urgent`], for as long as the process lives.
static URGENT: OnceLock<Option<Runtime>> = OnceLock::new();

/// More than so many jobs wait for one another.
const URGENT_MAX: usize = 64;

/// No task ever runs in this runtime: it needs no descriptor, and no thread but those for jobs.
fn urgent_threads() -> Option<Runtime> {
    let mut threads = tokio::runtime::Builder::new_current_thread();
    threads.max_blocking_threads(URGENT_MAX).thread_name("urgent").build().ok()
}

/// Completes when the job has ended, and panics when it has.
fn ended(job: JoinHandle<()>) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        if let Err(error) = job.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    })
}

struct RealTasks;

impl Tasks for RealTasks {
    fn blocking(&self, job: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        ended(tokio::task::spawn_blocking(job))
    }

    fn urgent(&self, job: Box<dyn FnOnce() + Send>) -> BoxFuture<'static, ()> {
        match URGENT.get_or_init(urgent_threads) {
            Some(threads) => ended(threads.spawn_blocking(job)),
            None => self.blocking(job),
        }
    }

    fn apart(&self, work: BoxFuture<'static, ()>) -> io::Result<BoxFuture<'static, ()>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (is_wanted, is_dropped) = tokio::sync::oneshot::channel::<()>();
        let (done, ended) = tokio::sync::oneshot::channel::<()>();
        std::thread::Builder::new().name("apart".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = work => {}
                    _ = is_dropped => {}
                }
            });
            // What it began and nobody waits for does not hold the end up.
            runtime.shutdown_background();
            drop(done);
        })?;
        Ok(Box::pin(async move {
            let _is_wanted = is_wanted;
            // It is closed at the end, never sent.
            let _ = ended.await;
        }))
    }
}

struct RealNet;

/// A socket in two halves, so that bytes can be written to it from elsewhere too
/// ([`Stream::writer`]).
struct RealStream {
    read: OwnedReadHalf,
    write: Arc<WriteHalf>,
}

struct WriteHalf(OwnedWriteHalf);

impl RealStream {
    fn boxed(stream: TcpStream) -> BoxStream {
        let (read, write) = stream.into_split();
        Box::new(Self { read, write: Arc::new(WriteHalf(write)) })
    }

    fn tcp(&self) -> &TcpStream {
        self.read.as_ref()
    }
}

impl Stream for RealStream {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    fn as_tcp(&self) -> Option<&TcpStream> {
        Some(self.tcp())
    }

    fn is_left(&self) -> bool {
        let ready = self.tcp().ready(Interest::READABLE).now_or_never();
        ready.is_some_and(|ready| ready.map_or(true, |ready| ready.is_read_closed()))
    }

    fn writer(&self) -> Option<Arc<dyn TryWrite>> {
        Some(self.write.clone())
    }
}

impl TryWrite for WriteHalf {
    fn try_write(&self, parts: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match parts {
            [only] => self.0.try_write(only),
            _ => self.0.try_write_vectored(parts),
        }
    }
}

impl AsyncRead for RealStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(context, buffer)
    }
}

impl AsyncWrite for RealStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.tcp().poll_write_ready(context))?;
            match self.write.try_write(parts) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(socket2::SockRef::from(self.tcp()).shutdown(std::net::Shutdown::Write))
    }
}

impl Listener for TcpListener {
    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxStream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, peer) = Self::accept(self).await?;
            // It fails when the client has gone already, which the first read tells.
            let _ = stream.set_nodelay(true);
            // As with Kafka: a peer that has vanished without a word is noticed by the system.
            let _ = socket2::SockRef::from(&stream).set_keepalive(true);
            Ok((RealStream::boxed(stream), peer))
        })
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Self::local_addr(self)
    }
}

impl Net for RealNet {
    fn bind<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxListener>> {
        Box::pin(bind(host, port, false))
    }

    fn bind_ipv6_only<'a>(
        &'a self,
        host: &'a str,
        port: u16,
    ) -> BoxFuture<'a, io::Result<BoxListener>> {
        Box::pin(bind(host, port, true))
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let stream = TcpStream::connect((host, port)).await?;
            stream.set_nodelay(true)?;
            Ok(RealStream::boxed(stream))
        })
    }
}

async fn bind(host: &str, port: u16, only_v6: bool) -> io::Result<BoxListener> {
    let addresses: Vec<SocketAddr> = if host.is_empty() {
        // Both families through one socket where the machine has IPv6, else IPv4 alone.
        vec![SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))]
    } else {
        let found = tokio::net::lookup_host((host, port)).await;
        found.map_err(|error| io::Error::new(io::ErrorKind::NotFound, error))?.collect()
    };
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match listen(address, only_v6) {
            Ok(listener) => return Ok(Box::new(listener)),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn listen(address: SocketAddr, only_v6: bool) -> io::Result<TcpListener> {
    let socket =
        socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    // A restarted broker takes its port back while old connections linger in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

#[derive(Default)]
struct RealDisk {
    /// Directories whose names this process has made durable: a start asks for one of them more
    /// than once.
    named: Mutex<BTreeMap<PathBuf, Made>>,
}

/// Tells a directory from another one that is made later in its place: inode and time of birth.
type Made = (u64, i64, u32);

/// `None` where the file system does not tell the time of birth.
fn made(path: &Path) -> Option<Made> {
    let wanted = StatxFlags::INO | StatxFlags::BTIME;
    let found = retry(|| rustix::fs::statx(CWD, path, AtFlags::empty(), wanted)).ok()?;
    let is_told = StatxFlags::from_bits_retain(found.stx_mask).contains(wanted);
    is_told.then_some((found.stx_ino, found.stx_btime.tv_sec, found.stx_btime.tv_nsec))
}

struct RealFile(OwnedFd);

impl File for RealFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        retry(|| rustix::io::pread(&self.0, &mut *buffer, offset))
    }

    fn read_at_nowait(&self, buffer: &mut [u8], offset: u64) -> io::Result<Option<usize>> {
        let mut parts = [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(&self.0, &mut parts, offset, ReadWriteFlags::NOWAIT) {
            Ok(n) => Ok(Some(n)),
            Err(Errno::AGAIN) => Ok(None),
            // File systems without NOWAIT (overlay on old kernels): an ordinary read.
            Err(Errno::OPNOTSUPP | Errno::INTR) => self.read_at(buffer, offset).map(Some),
            Err(error) => Err(error.into()),
        }
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], offset: u64) -> io::Result<()> {
        let total: usize = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        if parts.len() > 1 && parts.len() <= 1024 {
            done = retry(|| rustix::io::pwritev(&self.0, parts, offset))?;
        }
        // What one vectored call did not take, part by part.
        let mut start = 0;
        for part in parts {
            let end = start + part.len();
            while done < end {
                match retry(|| {
                    rustix::io::pwrite(&self.0, &part[done - start..], offset + done as u64)
                })? {
                    0 => return Err(io::ErrorKind::WriteZero.into()),
                    n => done += n,
                }
            }
            start = end;
        }
        debug_assert_eq!(done, total);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        retry(|| rustix::fs::fdatasync(&self.0)).map_err(not_synced)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        retry(|| rustix::fs::ftruncate(&self.0, len))
    }

    fn len(&self) -> io::Result<u64> {
        Ok(u64::try_from(rustix::fs::fstat(&self.0)?.st_size).unwrap_or(0))
    }

    fn modified_ms(&self) -> io::Result<Option<i64>> {
        let found = rustix::fs::fstat(&self.0)?;
        let nanos = i64::try_from(found.st_mtime_nsec).unwrap_or(0);
        Ok(found.st_mtime.checked_mul(1_000).map(|ms| ms.saturating_add(nanos / 1_000_000)))
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.0.as_fd())
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

impl RealDisk {
    /// Whether this process has made the name of this very directory durable.
    fn is_named(&self, path: &Path) -> bool {
        let made = made(path);
        made.is_some() && panics::lock(&self.named).get(path).copied() == made
    }
}

impl Disk for RealDisk {
    fn create_dir_all_durably(&self, path: &Path) -> io::Result<()> {
        let is_named = |path: &Path| self.is_named(path);
        create_dir_all_durably(self, path, is_named)?;
        if let Some(made) = made(path) {
            panics::lock(&self.named).insert(path.to_owned(), made);
        }
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<FileRef> {
        // A pipe in the place of a file is refused below, instead of waited for here.
        let flags = OFlags::CLOEXEC
            | OFlags::NONBLOCK
            | match mode {
                OpenMode::Read => OFlags::RDONLY,
                OpenMode::ReadWrite => OFlags::RDWR,
                OpenMode::Create => OFlags::RDWR | OFlags::CREATE,
                OpenMode::Truncate => OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC,
            };
        let file = retry(|| rustix::fs::open(path, flags, Mode::from_raw_mode(0o644)))?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(RealFile(file)))
    }

    /// To its end, wherever that is: a pipe, and a file that the kernel makes up, have no length.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        std::fs::read(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir_all(path)
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<DirEntry>> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(DirEntry { name, is_dir: entry.file_type()?.is_dir() });
            }
        }
        entries.sort();
        Ok(entries)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let dir = retry(|| {
            rustix::fs::open(
                path,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        })?;
        retry(|| rustix::fs::fsync(&dir)).map_err(not_synced)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        match rustix::fs::statat(rustix::fs::CWD, path, AtFlags::empty()) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn lock(&self, path: &Path) -> io::Result<FileRef> {
        let file = rustix::fs::open(
            path,
            OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn space(&self, path: &Path) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::statvfs(path)?;
        Ok((
            stat.f_blocks.saturating_mul(stat.f_frsize),
            stat.f_bavail.saturating_mul(stat.f_frsize),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectored_writes_land_whole_and_reads_find_them() {
        let dir = tempfile::tempdir().unwrap();
        let disk = RealDisk::default();
        let file = disk.open(&dir.path().join("a"), OpenMode::Create).unwrap();
        file.write_at(
            &[io::IoSlice::new(b"abc"), io::IoSlice::new(b""), io::IoSlice::new(b"defg")],
            2,
        )
        .unwrap();
        file.sync().unwrap();
        let mut seen = [9; 9];
        file.read_exact_at(&mut seen, 0).unwrap();
        assert_eq!(&seen, b"\0\0abcdefg");
        assert_eq!(file.read_at_nowait(&mut seen, 9).unwrap(), Some(0));
        assert_eq!(
            file.read_exact_at(&mut seen, 1).unwrap_err().kind(),
            io::ErrorKind::UnexpectedEof
        );
    }

    /// A pipe in the place of a file would hold up a start for ever; a user may name one.
    #[test]
    fn what_is_no_regular_file_is_refused_and_a_pipe_that_a_user_names_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::from_raw_mode(0o600)).unwrap();
        let disk = RealDisk::default();
        for mode in [OpenMode::Read, OpenMode::ReadWrite, OpenMode::Create] {
            let error = disk.open(&path, mode).err().unwrap();
            assert_eq!(error.to_string(), "not a regular file", "{mode:?}");
        }
        let error = disk.read_stored(&path).unwrap_err();
        assert_eq!(crate::Fault::of(&error), crate::Fault::BrokenInvariant);
        let written = path.clone();
        let writer = std::thread::spawn(move || std::fs::write(written, b"node.id=1"));
        assert_eq!(disk.read(&path).unwrap(), b"node.id=1");
        writer.join().unwrap().unwrap();
    }

    #[test]
    fn atomic_write_replaces_the_whole_content() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        RealDisk::default().write_atomically(&path, b"a longer first content").unwrap();
        RealDisk::default().write_atomically(&path, b"second").unwrap();
        assert_eq!(RealDisk::default().read(&path).unwrap(), b"second");
        assert_eq!(RealDisk::default().list(dir.path()).unwrap().len(), 1);
    }

    /// Its name is durable, and so is not asked for again; but one that has gone is made again, and
    /// of one that somebody else has made in its place nothing is known.
    #[test]
    fn directory_that_was_made_once_is_made_again_when_it_has_gone() {
        let (dir, disk) = (tempfile::tempdir().unwrap(), RealDisk::default());
        let path = dir.path().join("a/b");
        for _ in 0..2 {
            disk.create_dir_all_durably(&path).unwrap();
            assert!(disk.exists(&path).unwrap());
            assert_eq!(disk.is_named(&path), made(&path).is_some());
            std::fs::remove_dir_all(dir.path().join("a")).unwrap();
        }
        std::fs::create_dir_all(&path).unwrap();
        assert!(!disk.is_named(&path));
    }

    #[tokio::test]
    async fn one_port_serves_ipv4_and_ipv6_by_two_listeners() {
        let v4 = RealNet.bind("0.0.0.0", 0).await.unwrap();
        let port = v4.local_addr().unwrap().port();
        assert_eq!(RealNet.bind("::", port).await.err().unwrap().kind(), io::ErrorKind::AddrInUse);
        RealNet.bind_ipv6_only("::", port).await.unwrap();
    }

    #[tokio::test]
    async fn accepted_connections_are_kept_alive_and_send_at_once() {
        let listener = RealNet.bind("127.0.0.1", 0).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (client, accepted) =
            tokio::join!(RealNet.connect("127.0.0.1", port), listener.accept());
        let (stream, _) = accepted.unwrap();
        let socket = socket2::SockRef::from(stream.as_tcp().unwrap());
        assert!(socket.keepalive().unwrap());
        assert!(socket.tcp_nodelay().unwrap());
        drop(client);
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_not_found() {
        assert_eq!(
            RealNet.bind("name.invalid", 0).await.err().unwrap().kind(),
            io::ErrorKind::NotFound
        );
    }

    #[test]
    fn what_others_wait_for_does_not_wait_for_other_work() {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).enable_time().build().unwrap();
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let held = runtime.spawn_blocking(move || wait.recv().is_ok());
        let urgent = async {
            tokio::time::timeout(std::time::Duration::from_secs(60), Env::real().urgent(|| 7)).await
        };
        let done = runtime.block_on(urgent);
        drop(go);
        assert!(!runtime.block_on(held).unwrap());
        assert_eq!(done.unwrap(), 7);
    }

    #[test]
    fn second_lock_is_refused_until_the_first_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".lock");
        let first = RealDisk::default().lock(&path).unwrap();
        assert_eq!(
            RealDisk::default().lock(&path).err().unwrap().kind(),
            io::ErrorKind::WouldBlock
        );
        drop(first);
        RealDisk::default().lock(&path).unwrap();
    }
}
