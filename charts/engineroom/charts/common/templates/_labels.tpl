{{- /*
engineroom.labels.selector: labels that never change while an object lives.
Kubernetes rejects a Deployment whose selector changes, so nothing may be added here.
Quoted, because "123" and "1e3" are names that a release may have and YAML numbers.
Call with: dict "root" $ "component" "triton"
*/ -}}
{{- define "engineroom.labels.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | trunc 63 | trimSuffix "-" | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- /*
engineroom.labels.all: the selector set first, then what describes the object to people and tools.
Call with: dict "root" $ "component" "triton"
*/ -}}
{{- define "engineroom.labels.all" -}}
{{ include "engineroom.labels.selector" . }}
app.kubernetes.io/part-of: engineroom
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /*
engineroom.labels.pod: what a pod carries. Without versions: a new version of the chart must not restart a
server whose image and arguments are the same, because a restart loads the model again.
Call with: dict "root" $ "component" "triton"
*/ -}}
{{- define "engineroom.labels.pod" -}}
{{ include "engineroom.labels.selector" . }}
app.kubernetes.io/part-of: engineroom
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
{{- with .root.Values.serviceAccount.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}
