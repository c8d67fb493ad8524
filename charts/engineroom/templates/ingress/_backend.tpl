{{- /*
What is reachable from outside: the OpenAI API where there is a gateway, else the paths of Triton that answer, and no
other. Triton's model control, shared memory, tracing and logging are reachable from nowhere.
*/ -}}

{{- /* engineroom.ingress.port: name of the Service's port that HTTP is led to. Call with the root context. */ -}}
{{- define "engineroom.ingress.port" -}}
{{- ternary "openai" "http" .Values.gateway.enabled -}}
{{- end -}}

{{- /* engineroom.ingress.portNumber: its number; the Gateway API takes no names. Call with the root context. */ -}}
{{- define "engineroom.ingress.portNumber" -}}
{{- ternary 9000 8000 .Values.gateway.enabled -}}
{{- end -}}

{{- /*
engineroom.ingress.paths: a mapping of what is let in: `prefixes` (the OpenAI API) or `exact` paths (Triton's).
Call with the root context; gives YAML.
*/ -}}
{{- define "engineroom.ingress.paths" -}}
{{- if .Values.gateway.enabled -}}
prefixes: [/v1]
{{- else -}}
{{- $model := printf "/v2/models/%s" (include "engineroom.triton.clientModel" .) -}}
exact:
  {{- range $path := list "" "/config" "/ready" "/infer" "/generate" "/generate_stream" }}
  - {{ $model }}{{ $path }}
  {{- end }}
{{- end -}}
{{- end -}}
