#!/bin/bash
# Sourced by e2e/kind/run for its stories: names, and how to make, ask and judge what they speak of.

namespace=proof name=events
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' "$root/Cargo.toml")   # the chart's default tag
k() { kubectl --context "kind-$CLUSTER" "$@"; }
kn() { k -n $namespace "$@"; }
give_up() { say "nothing more can be shown without this"; report; finish; exit 1; }
report() { # what a person would look at
  k get pods,kafkaclusters,kafkatopics,statefulsets,pvc -A 2>&1 | sed 's/^/          | /'
  kn get events --sort-by=.lastTimestamp 2>/dev/null | tail -n 15 | sed 's/^/          | /'
  for each in letterbox default; do k -n $each logs deployment/letterbox-operator --tail=20 2>/dev/null | sed 's/^/          | /'; done
}
load() { # IMAGE NODES
  kind load docker-image --name "$CLUSTER" --nodes "$2" "$1"
}
chart=$root/charts/letterbox
install_chart() {
  helm --kube-context "kind-$CLUSTER" upgrade --install letterbox "$chart" -n letterbox --wait --timeout 120s --set watchAnyNamespace=true
}
ready() { # KIND/NAME [NAMESPACE]: Ready for the generation that is in the spec
  local object; object=$(k -n "${2:-$namespace}" get "$1" -o json) || return 1
  jq -e '. as $o | [.status.conditions[]? | select(.type == "Ready" and .status == "True" and .observedGeneration == $o.metadata.generation)] | length == 1' <<<"$object" >/dev/null ||
    { jq -c '{phase: .status.phase, conditions: [.status.conditions[]? | {type, status, reason, message, observedGeneration}], generation: .metadata.generation}' <<<"$object"; return 1; }
}
topic() { printf 'apiVersion: letterbox.dev/v1alpha1\nkind: KafkaTopic\nmetadata: {name: %s, namespace: %s}\nspec: {clusterRef: {name: %s}, partitions: %s, deletionPolicy: Delete}\n---\n' "$1" $namespace $name "$2"; }
make_cluster() {
  k apply -f - <<Y
apiVersion: letterbox.dev/v1alpha1
kind: KafkaCluster
metadata: {name: $name, namespace: $namespace}
spec:
  replicas: 1
  storage: {size: 4Gi, deletionPolicy: Delete}
  config: {message.max.bytes: "2000000"}
  listeners:
  - {name: plain, port: 9092, type: internal}
  - {name: outside, port: 9094, type: nodeport}
Y
}
pod=$name-broker-0-0 inside_address=$name-kafka-bootstrap.$namespace.svc:9092
address() { kn get kafkacluster $name -o jsonpath='{.status.listeners[?(@.name=="outside")].bootstrapServers}'; }
outside_known() { local a; a=$(address); [ -n "$a" ] && timeout 10 kcat -b "$a" -L -m 5 >/dev/null && echo "$a"; }
inside() { kn exec -i tools -- "$@"; }
kcat_produce() { # ADDRESS TOPIC RUNNER...
  local address=$1 topic=$2 section; shift 2
  for section in $(cd "$work/kcat" && LC_ALL=C ls); do
    "$@" kcat -b "$address" -P -t "$topic" -D '\x01' -K '\x02' -H "section=$section" -X enable.idempotence=true -X message.timeout.ms=300000 < "$work/kcat/$section" || return 1
  done
}
kcat_consume() { # ADDRESS TOPIC FILE RUNNER...
  local address=$1 topic=$2 file=$3; shift 3
  "$@" timeout 180 kcat -b "$address" -C -t "$topic" -e -q -f '%p %o %K %S %h\n%k%s\n' > "$file"
}
here_run() { "$@"; }
java_produce() { # ADDRESS TOPIC RUNNER...
  local address=$1 topic=$2; shift 2
  "$@" org.apache.kafka.tools.ConsoleProducer --topic "$topic" --bootstrap-server "$address" --reader-property parse.key=true --reader-property parse.headers=true \
    --reader-property key.separator=$'\x02' --reader-property headers.delimiter=$'\x03' --command-property linger.ms=20 --command-property delivery.timeout.ms=300000 < "$work/java"
}
java_arguments=(--formatter-property print.partition=true --formatter-property print.offset=true --formatter-property print.headers=true --formatter-property print.key=true
  --formatter-property key.separator=$'\x02' --formatter-property line.separator=$'\x01')
java_consume() { # ADDRESS TOPIC FILE RUNNER...
  local address=$1 topic=$2 file=$3; shift 3
  "$@" org.apache.kafka.tools.consumer.ConsoleConsumer --topic "$topic" --bootstrap-server "$address" --from-beginning --max-messages "$count" --timeout-ms 30000 "${java_arguments[@]}" > "$file" 2>"$file.err" || { tail -n 5 "$file.err"; return 1; }
}
java_inside="inside java-tool" java_outside=$root/e2e/apache-kafka/tool
judge() { "$here/packages.py" judge "$@"; }
pod_uid() { kn get pod $pod -o jsonpath='{.metadata.uid}'; }
pod_ready() { [ "$(pod_uid)" != "$1" ] && kn get pod $pod -o json | jq -e '.status.conditions[] | select(.type == "Ready" and .status == "True")' >/dev/null; }
