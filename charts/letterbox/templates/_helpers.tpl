{{- define "letterbox.name" -}}
{{- if contains "letterbox" .Release.Name -}}
{{- printf "%s-operator" (.Release.Name | trunc 50 | trimSuffix "-") -}}
{{- else -}}
{{- printf "%s-letterbox-operator" (.Release.Name | trunc 40 | trimSuffix "-") -}}
{{- end -}}
{{- end -}}

{{- define "letterbox.selector" -}}
app.kubernetes.io/name: letterbox-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "letterbox.labels" -}}
{{ include "letterbox.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: letterbox
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end -}}

{{/* The namespaces that are watched, as a JSON list; empty when all of them are. */}}
{{- define "letterbox.namespaces" -}}
{{- if .Values.watchAnyNamespace -}}[]
{{- else -}}{{ .Values.watchNamespaces | default (list .Release.Namespace) | toJson }}
{{- end -}}
{{- end -}}

{{/* Who else owns the definition .name: "release NAME in namespace NAMESPACE", or "another installation"; empty when nobody does. */}}
{{- define "letterbox.crdOwner" -}}
{{- $live := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" .name -}}
{{- if $live -}}
{{- $annotations := $live.metadata.annotations | default dict -}}
{{- $name := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if not $name -}}another installation
{{- else if or (ne $name .root.Release.Name) (ne $namespace .root.Release.Namespace) -}}release {{ $name }} in namespace {{ $namespace }}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* What the operator may do where clusters and topics are. Nothing here reads Secrets or runs in pods. */}}
{{- define "letterbox.rules" -}}
- apiGroups: [letterbox.dev]
  resources: [kafkaclusters, kafkatopics]
  verbs: [get, list, watch, patch]
- apiGroups: [letterbox.dev]
  resources: [kafkaclusters/status, kafkatopics/status]
  verbs: [patch]
# Objects are made with owner references that block the owner's deletion.
- apiGroups: [letterbox.dev]
  resources: [kafkaclusters/finalizers]
  verbs: [update]
# A cluster with the deletion policy Delete takes its brokers and their volumes with it.
- apiGroups: [apps]
  resources: [statefulsets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [policy]
  resources: [poddisruptionbudgets]
  verbs: [get, list, watch, create, patch]
- apiGroups: [""]
  resources: [serviceaccounts]
  verbs: [get, list, watch, create, patch]
# The service of a listener that left the spec, and configurations that no broker has any more, are removed.
- apiGroups: [""]
  resources: [configmaps, services]
  verbs: [get, list, watch, create, patch, delete]
# Only the operator restarts a broker, by ending its pod.
- apiGroups: [""]
  resources: [pods]
  verbs: [list, watch, delete]
- apiGroups: [""]
  resources: [persistentvolumeclaims]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [get, create, patch]
# Why Kubernetes does not start a broker.
- apiGroups: [""]
  resources: [events]
  verbs: [list]
{{- end -}}
