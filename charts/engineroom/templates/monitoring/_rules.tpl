{{- /*
engineroom.monitoring.groups: all rule groups of the release, as a rule file of Prometheus holds them below `groups`.
Every recorded series carries the release's `namespace` and `service`: by these, prometheus-adapter finds the Service
that the HPA asks about.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.groups" -}}
{{- $name := printf "%s.%s" .Release.Namespace (include "engineroom.names.fullname" .) -}}
- name: {{ printf "%s.signals" $name | quote }}
  interval: {{ .Values.monitoring.interval }}
  # In this order: a later rule reads what an earlier one recorded at the same time.
  rules:
    {{- include "engineroom.monitoring.signalRules" . | trim | nindent 4 }}
    {{- with include "engineroom.monitoring.loadRules" . | trim }}
    {{- . | nindent 4 }}
    {{- end }}
{{- if .Values.monitoring.alerts.enabled }}
- name: {{ printf "%s.alerts" $name | quote }}
  rules: {{- include "engineroom.monitoring.alerts" . | trim | nindent 4 }}
{{- end }}
{{- end -}}

{{- /*
engineroom.monitoring.record: one recording rule, with the release's labels.
Call with: dict "root" $ "record" "engineroom:requests_waiting:sum" "expr" "…"
*/ -}}
{{- define "engineroom.monitoring.record" }}
- record: {{ .record }}
  expr: |-
    {{- .expr | nindent 4 }}
  labels:
    namespace: {{ .root.Release.Namespace | quote }}
    service: {{ include "engineroom.names.fullname" .root | quote }}
{{- end -}}

{{- /*
engineroom.monitoring.signalRules: what the runtime and the gateway report, summed over the release. `gateway` says
whether the gateway's signal is added to the engine's, or stands instead of it.
A sum of engine and gateway has no value where one of them is not scraped: no number is better than half of one,
and the alert on a blind signal says so.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.signalRules" -}}
{{- $root := . -}}
{{- $runtime := .Values.model.runtime -}}
{{- range $record, $rule := dict
  "engineroom:requests_waiting:sum" (dict "signal" "waiting" "over" "sum" "gateway" "added")
  "engineroom:requests_running:sum" (dict "signal" "running" "over" "sum" "gateway" "")
  "engineroom:requests_slots:sum" (dict "signal" "slots" "over" "sum" "gateway" "")
  "engineroom:queued_prompt_tokens:sum" (dict "signal" "queuedPromptTokens" "over" "sum" "gateway" "added")
  "engineroom:kv_used_ratio:max" (dict "signal" "kvUsedRatio" "over" "max" "gateway" "")
  "engineroom:replicas:count" (dict "signal" "running" "over" "count" "gateway" "")
  "engineroom:output_tokens_per_second:sum" (dict "signal" "outputTokensPerSecond" "over" "sum" "gateway" "instead")
}}
{{- $instead := and (eq $rule.gateway "instead") $root.Values.gateway.enabled -}}
{{- $source := ternary "gateway" $runtime $instead -}}
{{- with include "engineroom.monitoring.signal" (dict "root" $root "source" $source "signal" $rule.signal) }}
{{- $expr := printf "%s(%s)" $rule.over . -}}
{{- if and (eq $rule.gateway "added") $root.Values.gateway.enabled -}}
{{- $gateway := include "engineroom.monitoring.signal" (dict "root" $root "source" "gateway" "signal" $rule.signal) -}}
{{- $expr = printf "%s + sum(%s)" $expr $gateway -}}
{{- end -}}
{{- include "engineroom.monitoring.record" (dict "root" $root "record" $record "expr" $expr) }}
{{- end }}
{{- end }}
{{- if .Values.gateway.enabled }}
{{- $pods := include "engineroom.monitoring.pods" . }}
{{- range $latency := list "ttft" "itl" "e2e" "queue" }}
{{- range $quantile := list "0.50" "0.95" "0.99" }}
{{- $record := printf "engineroom:%s_seconds:p%s" $latency (trimPrefix "0." $quantile) }}
{{- $expr := printf "histogram_quantile(%s, sum by (le) (rate(engineroom_gateway_%s_seconds_bucket{%s}[5m])))" $quantile $latency $pods }}
{{- include "engineroom.monitoring.record" (dict "root" $root "record" $record "expr" $expr) }}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{- /*
engineroom.monitoring.loadRules: the load in units of one replica's capacity, which an autoscaler follows at the
rate of one replica for each unit. Nothing where nothing follows it.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.loadRules" -}}
{{- $root := . -}}
{{- $load := "engineroom:load_replicas" -}}
{{- if eq .Values.autoscaling.kind "none" }}
{{- else if eq .Values.autoscaling.signal "waiting" }}
{{- $expr := printf "engineroom:requests_waiting:sum{%s} / %v" (include "engineroom.monitoring.series" .) .Values.autoscaling.waitingPerReplica }}
{{- include "engineroom.monitoring.record" (dict "root" $root "record" $load "expr" $expr) }}
{{- else if eq .Values.autoscaling.signal "queueCompute" }}
{{- $pods := include "engineroom.monitoring.pods" . }}
{{- /* NVIDIA's rule for each series of a model; of the models of one pod, the slowest counts. */ -}}
{{- $ratio := printf "sum(max by (namespace, pod) (rate(nv_inference_queue_duration_us{%s}[1m]) / clamp_min(rate(nv_inference_compute_infer_duration_us{%s}[1m]), 1)))" $pods $pods }}
{{- include "engineroom.monitoring.record" (dict "root" $root "record" "engineroom:queue_compute_ratio:sum" "expr" $ratio) }}
{{- $expr := printf "engineroom:queue_compute_ratio:sum{%s} / %v" (include "engineroom.monitoring.series" .) .Values.autoscaling.queueComputePerReplica }}
{{- include "engineroom.monitoring.record" (dict "root" $root "record" $load "expr" $expr) }}
{{- else if eq .Values.autoscaling.signal "custom" }}
{{- range .Values.autoscaling.rules }}
{{- include "engineroom.monitoring.record" (dict "root" $root "record" .record "expr" (tpl .expr $root)) }}
{{- end }}
{{- end }}
{{- end -}}
