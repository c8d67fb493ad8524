{{- /*
engineroom.monitoring.alert: one alert, with its runbook.
Call with: dict "root" $ "alert" "EngineroomQueueLong" "severity" "warning" "for" "5m" "expr" "…" "runbook" "queue-long"
"summary" "…" and, where two rules share a name, "labels" (dict …).
*/ -}}
{{- define "engineroom.monitoring.alert" }}
- alert: {{ .alert }}
  expr: |-
    {{- .expr | nindent 4 }}
  for: {{ .for }}
  labels:
    severity: {{ .severity }}
    namespace: {{ .root.Release.Namespace | quote }}
    service: {{ include "engineroom.names.fullname" .root | quote }}
    {{- range $name, $value := merge (dict) (default dict .labels) .root.Values.monitoring.alerts.labels }}
    {{ $name }}: {{ $value | quote }}
    {{- end }}
  annotations:
    summary: {{ .summary | quote }}
    {{- if .root.Values.monitoring.alerts.runbookUrl }}
    runbook_url: {{ printf "%s/%s.md" (trimSuffix "/" .root.Values.monitoring.alerts.runbookUrl) .runbook | quote }}
    {{- else }}
    runbook: {{ printf "docs/runbooks/%s.md" .runbook | quote }}
    {{- end }}
{{- end -}}

{{- /*
engineroom.monitoring.alerts: every alert that the release's values give a source for. A saturated server is healthy:
none of severity warning or above fires for a full GPU, full slots or a short queue alone.
Call with the root context.
*/ -}}
{{- define "engineroom.monitoring.alerts" -}}
{{- $root := . -}}
{{- $alerts := .Values.monitoring.alerts -}}
{{- $name := include "engineroom.names.fullname" . -}}
{{- $namespace := .Release.Namespace -}}
{{- $pods := include "engineroom.monitoring.pods" . -}}
{{- $series := include "engineroom.monitoring.series" . -}}
{{- $workload := printf "namespace=\"%s\",%s=\"%s\"" $namespace (lower .Values.triton.workload.kind) (include "engineroom.names.triton" .) -}}
{{- $wanted := "" -}}
{{- if eq .Values.triton.workload.kind "Deployment" -}}
{{- $wanted = printf "max(kube_deployment_spec_replicas{%s})" $workload -}}
{{- else if eq .Values.triton.workload.kind "StatefulSet" -}}
{{- $wanted = printf "max(kube_statefulset_replicas{%s})" $workload -}}
{{- end -}}

{{- if $wanted }}
{{- $available := printf "max(kube_%s_status_replicas_available{%s})" (lower .Values.triton.workload.kind) $workload }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomDown" "severity" "critical" "for" "5m" "runbook" "down"
  "expr" (printf "%s == 0 and on () %s > 0" $available $wanted)
  "summary" (printf "No pod of %s can answer." $name)) }}
{{- end }}

{{- /* A release that was scaled to nothing has no load to report. */ -}}
{{- $missing := printf "absent(engineroom:requests_waiting:sum{%s})" $series }}
{{- if $wanted }}{{ $missing = printf "%s unless on () %s == 0" $missing $wanted }}{{ end }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomSignalBlind" "severity" "warning" "for" "5m" "runbook" "signal-blind"
  "labels" (dict "signal" "missing") "expr" $missing
  "summary" (printf "No load of %s is recorded: its pods are not scraped, or the rules are not evaluated." $name)) }}
{{- $still := "" }}
{{- if and (eq .Values.autoscaling.signal "queueCompute") (ne .Values.autoscaling.kind "none") }}
{{- $still = printf "min_over_time(engineroom:requests_running:sum{%s}[10m]) > 0 and on () sum(increase(nv_inference_queue_duration_us{%s}[10m])) == 0" $series $pods }}
{{- else if .Values.gateway.enabled }}
{{- $still = printf "sum(avg_over_time(engineroom_gateway_requests_running{%s}[5m])) > 1 and on () max_over_time(engineroom:requests_running:sum{%s}[5m]) == 0" $pods $series }}
{{- else if eq .Values.model.runtime "tensorrt" }}
{{- /* Little's law: seconds of requests in each second are the requests in flight. */ -}}
{{- $still = printf "sum(rate(nv_inference_request_duration_us{model=\"%s\",%s}[5m])) / 1e6 > 1 and on () max_over_time(engineroom:requests_running:sum{%s}[5m]) == 0" (include "engineroom.triton.clientModel" .) $pods $series }}
{{- end }}
{{- if $still }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomSignalBlind" "severity" "warning" "for" "5m" "runbook" "signal-blind"
  "labels" (dict "signal" "still") "expr" $still
  "summary" (printf "Requests are in flight in %s, but its load signal does not move." $name)) }}
{{- end }}

{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomQueueLong" "severity" "warning" "for" "5m" "runbook" "queue-long"
  "expr" (printf "engineroom:requests_waiting:sum{%s} / engineroom:replicas:count{%s} > %v" $series $series $alerts.waitingPerReplica)
  "summary" (printf "More than %v requests wait for each replica of %s." $alerts.waitingPerReplica $name)) }}

{{- if .Values.gateway.enabled }}
{{- range $severity, $seconds := dict "warning" $alerts.ttftSeconds "critical" $alerts.ttftCriticalSeconds }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomTtftHigh" "severity" $severity "for" "5m" "runbook" "ttft-high"
  "expr" (printf "engineroom:ttft_seconds:p95{%s} > %v" $series $seconds)
  "summary" (printf "1 request in 20 waits more than %v s for its first token in %s." $seconds $name)) }}
{{- end }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomItlHigh" "severity" "warning" "for" "5m" "runbook" "itl-high"
  "expr" (printf "engineroom:itl_seconds:p95{%s} > %v" $series $alerts.itlSeconds)
  "summary" (printf "1 token in 20 comes more than %v s after the one before it in %s." $alerts.itlSeconds $name)) }}
{{- end }}

{{- /* Waiting with slots free: it is the memory that is full, not the batch. */ -}}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomKvCacheFull" "severity" "warning" "for" "10m" "runbook" "kv-cache-full"
  "expr" (printf "engineroom:kv_used_ratio:max{%s} > 0.95 and on () engineroom:requests_waiting:sum{%s} > 0 and on () engineroom:requests_running:sum{%s} / engineroom:requests_slots:sum{%s} < 0.9" $series $series $series $series)
  "summary" (printf "Requests wait for KV cache, not for slots, in %s." $name)) }}

{{- $calls := printf "model=\"%s\",%s" (include "engineroom.triton.clientModel" .) $pods }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomFailures" "severity" "warning" "for" "5m" "runbook" "failures"
  "labels" (dict "by" "triton")
  "expr" (printf "sum(rate(nv_inference_request_failure{reason!=\"CANCELED\",%s}[5m])) / (sum(rate(nv_inference_request_success{%s}[5m])) + sum(rate(nv_inference_request_failure{%s}[5m]))) > 0.05" $calls $calls $calls)
  "summary" (printf "More than 1 request in 20 fails in %s." $name)) }}
{{- if .Values.gateway.enabled }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomFailures" "severity" "warning" "for" "5m" "runbook" "failures"
  "labels" (dict "by" "gateway")
  "expr" (printf "sum(rate(engineroom_gateway_rejected_total{reason=~\"upstream_unavailable|upstream_error|deadline|internal\",%s}[5m])) / sum(rate(engineroom_gateway_requests_total{%s}[5m])) > 0.05" $pods $pods)
  "summary" (printf "The gateway of %s answers more than 1 request in 20 with an error of the server." $name)) }}
{{- end }}

{{- if .Values.triton.preflight }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomEngineMismatch" "severity" "warning" "for" "0m" "runbook" "engine-mismatch"
  "expr" (printf "sum by (pod) (increase(kube_pod_init_container_status_restarts_total{container=\"preflight\",%s}[15m])) > 0" $pods)
  "summary" (printf "A pod of %s refuses to start: its engine was built for another GPU, driver or TensorRT-LLM." $name)) }}
{{- end }}

{{- if gt (int (include "engineroom.triton.gpus" .)) 0 }}
{{- $prefix := ternary "" "exported_" $alerts.dcgmHonorLabels }}
{{- $gpu := printf "avg(DCGM_FI_DEV_GPU_UTIL{%s})" (printf "%s%s" $prefix $pods | replace ",pod=~" (printf ",%spod=~" $prefix)) }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomGpuIdle" "severity" "info" "for" "30m" "runbook" "gpu-idle"
  "expr" (printf "%s < 50" $gpu)
  "summary" (printf "The GPUs of %s were busy less than half of the time." $name)) }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomGpuSaturated" "severity" "info" "for" "30m" "runbook" "gpu-saturated"
  "expr" (printf "%s > 95" $gpu)
  "summary" (printf "The GPUs of %s were busy all the time, which is healthy while latencies hold." $name)) }}
{{- end }}

{{- if and .Values.backup.enabled (not .Values.backup.suspend) }}
{{- $backup := printf "namespace=\"%s\",cronjob=\"%s\"" $namespace (include "engineroom.names.backup" .) }}
{{- $age := mulf $alerts.backupHours 3600 }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomBackupStale" "severity" "warning" "for" "10m" "runbook" "backup-stale"
  "expr" (printf "time() - max(kube_cronjob_status_last_successful_time{%s} or kube_cronjob_created{%s}) > %v" $backup $backup $age)
  "summary" (printf "The last backup of %s that succeeded is more than %v hours old." $name $alerts.backupHours)) }}
{{- end }}

{{- if ne .Values.autoscaling.kind "none" }}
{{- $autoscaler := printf "namespace=\"%s\",horizontalpodautoscaler=\"%s\"" $namespace (include "engineroom.names.autoscaler" .) }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomAutoscalerAtMax" "severity" "warning" "for" "15m" "runbook" "autoscaler-at-max"
  "expr" (printf "max(kube_horizontalpodautoscaler_status_current_replicas{%s}) >= max(kube_horizontalpodautoscaler_spec_max_replicas{%s}) and on () max(kube_horizontalpodautoscaler_status_condition{condition=\"ScalingLimited\",status=\"true\",%s}) == 1" $autoscaler $autoscaler $autoscaler)
  "summary" (printf "%s has its maximum of replicas, and its load asks for more." $name)) }}
{{- include "engineroom.monitoring.alert" (dict "root" $root "alert" "EngineroomAutoscalerInactive" "severity" "warning" "for" "5m" "runbook" "autoscaler-inactive"
  "expr" (printf "max(kube_horizontalpodautoscaler_status_condition{condition=\"ScalingActive\",status=\"false\",%s}) == 1" $autoscaler)
  "summary" (printf "The autoscaler of %s cannot read its metric, and changes nothing." $name)) }}
{{- end }}
{{- end -}}
