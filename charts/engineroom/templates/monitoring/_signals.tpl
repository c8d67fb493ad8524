{{- /*
engineroom.monitoring.pods: PromQL label matchers for the pods of this release, with whatever suffix their workload
gives them: two parts for a Deployment, one or two numbers for a StatefulSet or a LeaderWorkerSet. All ways to scrape
set the labels `namespace` and `pod`.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.pods" -}}
namespace="{{ .Release.Namespace }}",pod=~"{{ include "engineroom.names.triton" . }}-[a-z0-9]+(-[a-z0-9]+)?"
{{- end -}}

{{- /*
engineroom.monitoring.series: PromQL label matchers for what the recording rules of this release record.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.series" -}}
namespace="{{ .Release.Namespace }}",service="{{ include "engineroom.names.fullname" . }}"
{{- end -}}

{{- /*
engineroom.monitoring.signal: the PromQL of one signal from files/signals.yaml, one number per pod; empty where
the source has no such signal.
Call with: dict "root" $ "source" "tensorrt" "signal" "waiting"
*/ -}}
{{- define "engineroom.monitoring.signal" -}}
{{- $table := .root.Files.Get "files/signals.yaml" | fromYaml -}}
{{- with get (get $table .source) .signal -}}
{{- . | replace "PODS" (include "engineroom.monitoring.pods" $.root) -}}
{{- end -}}
{{- end -}}
