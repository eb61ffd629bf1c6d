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

{{/* The reference of .image, which has a repository, a tag and a digest. */}}
{{- define "letterbox.image" -}}
{{ .image.repository }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ with .image.digest }}@{{ . }}{{ end }}
{{- end -}}

{{/* Who else owns the object .name of .api and .kind: "release NAME in namespace NAMESPACE", or "another installation"; empty when nobody does. */}}
{{- define "letterbox.owner" -}}
{{- $live := lookup .api .kind .namespace .name -}}
{{- if $live -}}
{{- $annotations := $live.metadata.annotations | default dict -}}
{{- $name := get $annotations "meta.helm.sh/release-name" -}}
{{- $namespace := get $annotations "meta.helm.sh/release-namespace" -}}
{{- if not $name -}}another installation
{{- else if or (ne $name .root.Release.Name) (ne $namespace .root.Release.Namespace) -}}release {{ $name }} in namespace {{ $namespace }}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "letterbox.crdOwner" -}}
{{ include "letterbox.owner" (dict "root" .root "api" "apiextensions.k8s.io/v1" "kind" "CustomResourceDefinition" "namespace" "" "name" .name) }}
{{- end -}}

{{/* The fields below .path that the schema .wanted has and .served has not, each after a space. */}}
{{- define "letterbox.lacks" -}}
{{- $wanted := .wanted -}}
{{- $served := .served -}}
{{- $path := .path -}}
{{- if not (get $served "x-kubernetes-preserve-unknown-fields") -}}
{{- $has := get $served "properties" | default dict -}}
{{- range $name, $field := (get $wanted "properties" | default dict) -}}
{{- if not (hasKey $has $name) }} {{ $path }}.{{ $name }}
{{- else -}}
{{- include "letterbox.lacks" (dict "wanted" $field "served" (get $has $name) "path" (printf "%s.%s" $path $name)) -}}
{{- end -}}
{{- end -}}
{{- range $inner := list "items" "additionalProperties" -}}
{{- if and (kindIs "map" (get $wanted $inner)) (kindIs "map" (get $served $inner)) -}}
{{- include "letterbox.lacks" (dict "wanted" (get $wanted $inner) "served" (get $served $inner) "path" $path) -}}
{{- end -}}
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
{{- if .Values.leaderElection.enabled }}
# One operator acts in a namespace. A name cannot be given for what does not exist yet.
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  verbs: [create]
- apiGroups: [coordination.k8s.io]
  resources: [leases]
  resourceNames: [letterbox-operator-of-namespace]
  verbs: [get, update, delete]
{{- end }}
{{- end -}}
