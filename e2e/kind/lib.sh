#!/bin/bash
# Sourced by e2e/kind/run for its stories: names, and how to make, ask and judge what they speak of.
#
#   need COMMAND...              what a story stands on; the story ends where it cannot be had
#   later "a sentence" COMMAND   a check that mostly waits: begun now, told by `collect`
#   collect                      waits for every `later` so far
#   give_up                      ends the story
#
# A story needs what is below under "What stories stand on", and nothing that another one left:
# each can be run alone. Its jobs in the background go into jobs_made.

namespace=proof name=events
pod=$name-broker-0-0 inside_address=$name-kafka-bootstrap.$namespace.svc:9092
chart=$root/charts/letterbox
# The chart's default tag.
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")

k() { kubectl --context "kind-$CLUSTER" "$@"; }
kn() { k -n $namespace "$@"; }
h() { helm --kube-context "kind-$CLUSTER" "$@"; }
control_plane() { docker exec "$CLUSTER-control-plane" "$@"; }

# ---- how a run goes ------------------------------------------------------------------------------

report() { # what a person would look at
  local each
  {
    k get pods,kafkaclusters,kafkatopics,statefulsets,pvc -A 2>&1
    kn get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 15
    for each in letterbox default; do
      k -n $each logs deployment/letterbox-operator --tail=20 2>/dev/null
    done
  } | sed 's/^/          | /'
}

give_up() { say "this story cannot go on without this"; report; broke_off=; exit 1; }

need() {
  "$@" >"$work/need" 2>&1 && return
  check "what the story stands on: $*" cat_and_fail "$work/need"
  give_up
}
cat_and_fail() { cat "$1"; return 1; }

later() {
  local sentence=$1 file; shift
  file=$(mktemp "$work/later/XXXXXX")
  echo "$sentence" > "$file.sentence"
  {
    local began=$SECONDS code
    "$@" >"$file" 2>&1; code=$?
    echo "$code $((SECONDS - began))" > "$file.ended"
  } &
}
collect() {
  local each code seconds CHECK_DETAIL
  for each in "$work"/later/*.sentence; do
    [ -e "$each" ] || continue
    each=${each%.sentence}
    until [ -s "$each.ended" ]; do sleep 0.2; done   # each has a deadline of its own
    read -r code seconds < "$each.ended"
    CHECK_DETAIL="after $seconds s" check "$(cat "$each.sentence")" told_later "$each" "$code"
    rm -f "$each" "$each".*
  done
}
told_later() { cat "$1"; return "$2"; }

ended() { ! kill -0 "$1" 2>/dev/null; }

# Seconds since the epoch, to a thousandth; and since such a moment.
moment() { date +%s.%3N; }
since() { awk -v a="$1" -v b="$(moment)" 'BEGIN { printf "%.1f", b - a }'; }

# ---- objects -------------------------------------------------------------------------------------

make_namespace() { # NAME: one where pods are restricted
  k create namespace "$1" --dry-run=client -o yaml | k apply -f - &&
    k label --overwrite namespace "$1" pod-security.kubernetes.io/enforce=restricted
}

install_chart() { # HELM'S ARGUMENTS...
  h upgrade --install letterbox "$chart" -n letterbox --wait --timeout 120s \
    --set watchAnyNamespace=true "$@"
}
operator_pods() { k -n letterbox get pods -l app.kubernetes.io/name=letterbox-operator -o name; }
operator_restarts() {
  k -n letterbox get pods -l app.kubernetes.io/name=letterbox-operator -o json |
    jq '[.items[].status.containerStatuses[]?.restartCount] | add'
}
never_crashed() { equals "$(operator_restarts)" 0; }

make_cluster() { # [NAMESPACE]
  k -n "${1:-$namespace}" apply -f - <<Y
apiVersion: letterbox.dev/v1alpha1
kind: KafkaCluster
metadata: {name: $name}
spec:
  replicas: 1
  storage: {size: 4Gi, deletionPolicy: Delete}
  config: {message.max.bytes: "2000000"}
  listeners:
  - {name: plain, port: 9092, type: internal}
  - {name: outside, port: 9094, type: nodeport}
Y
}
topic() { # NAME PARTITIONS
  cat <<Y
apiVersion: letterbox.dev/v1alpha1
kind: KafkaTopic
metadata: {name: $1}
spec: {clusterRef: {name: $name}, partitions: $2, deletionPolicy: Delete}
---
Y
}

condition() { # KIND/NAME TYPE [NAMESPACE]: `STATUS REASON: MESSAGE`, of the spec's generation
  k -n "${3:-$namespace}" get "$1" -o json | jq -r --arg type "$2" '. as $object |
    .status.conditions[]? | select(.type == $type and
      .observedGeneration == $object.metadata.generation) | "\(.status) \(.reason): \(.message)"'
}
ready() { # KIND/NAME [NAMESPACE]
  local told; told=$(condition "$1" Ready "${2:-}") && echo "$1 Ready: $told" && [[ $told = True* ]]
}

pod_uid() { kn get pod $pod -o jsonpath='{.metadata.uid}'; }
pod_ready() { # UID: a pod that is Ready and is not that one
  [ "$(pod_uid)" != "$1" ] && kn get pod $pod -o json |
    jq -e '.status.conditions[] | select(.type == "Ready" and .status == "True")' >/dev/null
}

# One of Kafka's tools, in the broker's own pod.
tool() { kn exec -i $pod -- "$@"; }
local_server="--bootstrap-server localhost:9092"

# ---- clients -------------------------------------------------------------------------------------

outside_known() {
  local all='{.status.listeners[?(@.name=="outside")].bootstrapServers}'
  outside=$(kn get kafkacluster $name -o jsonpath="$all")
  [ -n "$outside" ] && timeout 10 kcat -b "$outside" -L -m 5 >/dev/null && echo "$outside"
}

tools_pod() { # a pod with kcat and the Java tools, on the node that has the image
  local image node overrides; image=$(cat "$work/tools_image") node=$(cat "$work/tools_node")
  overrides=$(jq -n --arg image "$image" --arg node "$node" '{spec: {nodeName: $node,
    automountServiceAccountToken: false, securityContext: {runAsNonRoot: true, runAsUser: 1000,
      seccompProfile: {type: "RuntimeDefault"}}, containers: [{name: "tools", image: $image,
      imagePullPolicy: "Never", command: ["sleep", "infinity"], securityContext:
      {allowPrivilegeEscalation: false, capabilities: {drop: ["ALL"]}}}]}}')
  kn get pod tools >/dev/null 2>&1 ||
    kn run tools --image "$image" --restart=Never --overrides "$overrides"
  kn wait --for=condition=Ready pod/tools --timeout=60s
}
inside() { kn exec -i tools -- "$@"; }
here_run() { "$@"; }

kcat_produce() { # ADDRESS TOPIC RUNNER...
  local address=$1 topic=$2 section; shift 2
  for section in $(cd "$work/kcat" && LC_ALL=C ls); do
    "$@" kcat -b "$address" -P -t "$topic" -D '\x01' -K '\x02' -H "section=$section" \
      -X enable.idempotence=true -X message.timeout.ms=300000 < "$work/kcat/$section" || return 1
  done
}
kcat_consume() { # ADDRESS TOPIC FILE RUNNER...
  local address=$1 topic=$2 file=$3; shift 3
  "$@" timeout 180 kcat -b "$address" -C -t "$topic" -e -q -f '%p %o %K %S %h\n%k%s\n' > "$file"
}
records_of() { timeout 60 kcat -b "$outside" -C -t "$1" -e -q -f '%o\n' | wc -l; }

# In large pieces, because each is a message of its own through the API server.
java_inside() {
  inside bash -o pipefail -c '"$@" | dd obs=256k status=none' bash java-tool "$@"
}
java_outside=$root/e2e/apache-kafka/tool
java_arguments=(--formatter-property print.partition=true --formatter-property print.offset=true
  --formatter-property print.headers=true --formatter-property print.key=true
  --formatter-property key.separator=$'\x02' --formatter-property line.separator=$'\x01')
java_produce() { # ADDRESS TOPIC RUNNER...
  local address=$1 topic=$2; shift 2
  "$@" org.apache.kafka.tools.ConsoleProducer --topic "$topic" --bootstrap-server "$address" \
    --reader-property parse.key=true --reader-property parse.headers=true \
    --reader-property key.separator=$'\x02' --reader-property headers.delimiter=$'\x03' \
    --command-property linger.ms=20 --command-property delivery.timeout.ms=300000 < "$work/java"
}
java_consume() { # ADDRESS TOPIC FILE RUNNER...
  local address=$1 topic=$2 file=$3; shift 3
  "$@" org.apache.kafka.tools.consumer.ConsoleConsumer --topic "$topic" \
    --bootstrap-server "$address" --from-beginning --max-messages "$count" --timeout-ms 30000 \
    "${java_arguments[@]}" > "$file" 2>"$file.err" || { tail -n 5 "$file.err"; return 1; }
}

judge() { "$here/packages.py" judge "$@"; }

# ---- what stories stand on (need …) --------------------------------------------------------------

operator() { # for every namespace
  k get deployment -n letterbox letterbox-operator >/dev/null 2>&1 && return
  make_namespace letterbox && install_chart
}

cluster() { # events in namespace proof; its address outside is $outside
  operator || return
  ready kafkacluster/$name || {
    make_namespace $namespace && make_cluster && until_true 120 ready kafkacluster/$name || return
  }
  until_true 60 outside_known && outside_known
}

topic_ready() { # NAME [PARTITIONS]
  ready "kafkatopic/$1" && return
  kn get "kafkatopic/$1" || { topic "$1" "${2:-6}" | kn apply -f -; } || return
  until_true 60 ready "kafkatopic/$1"
}

records() { # TOPIC: the whole index is in it
  topic_ready "$1" || return
  [ "$(records_of "$1")" -eq "$count" ] || kcat_produce "$outside" "$1" here_run
}
