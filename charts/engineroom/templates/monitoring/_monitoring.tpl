{{- /*
engineroom.monitoring.ports: names of the ports that are scraped, as a comma-separated list.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.ports" -}}
metrics{{ if .Values.gateway.enabled }},openai-metrics{{ end }}
{{- end -}}

{{- /*
engineroom.monitoring.podAnnotations: what makes a Prometheus that looks for annotations scrape Triton; nothing for
the other ways. The annotations have room for one port: the gateway's stands at the Service.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.podAnnotations" -}}
{{- if eq .Values.monitoring.scrape "annotations" -}}
prometheus.io/scrape: "true"
prometheus.io/port: "8002"
prometheus.io/path: /metrics
{{- end -}}
{{- end -}}

{{- /* engineroom.monitoring.serviceAnnotations: the same for the gateway. Call with the root context. */ -}}
{{- define "engineroom.monitoring.serviceAnnotations" -}}
{{- if and (eq .Values.monitoring.scrape "annotations") .Values.gateway.enabled -}}
prometheus.io/scrape: "true"
prometheus.io/port: "9002"
prometheus.io/path: /metrics
{{- end -}}
{{- end -}}

{{- /*
engineroom.monitoring.validations: refusals, for templates/validations.yaml. Renders nothing.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.validations" -}}
{{- $alerts := .Values.monitoring.alerts -}}
{{- if lt (float64 $alerts.ttftCriticalSeconds) (float64 $alerts.ttftSeconds) -}}
{{- fail (printf "monitoring.alerts.ttftCriticalSeconds=%v is below monitoring.alerts.ttftSeconds=%v, so the page would come before the warning: swap them" $alerts.ttftCriticalSeconds $alerts.ttftSeconds) -}}
{{- end -}}
{{- end -}}
