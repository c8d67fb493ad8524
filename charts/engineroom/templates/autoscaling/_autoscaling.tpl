{{- /*
engineroom.autoscaling.target: what is scaled, as `scaleTargetRef`. Its scale is counted in pods, for a
LeaderWorkerSet in groups of pods.
Call with the root context.
*/ -}}
{{- define "engineroom.autoscaling.target" -}}
apiVersion: {{ ternary "leaderworkerset.x-k8s.io/v1" "apps/v1" (eq .Values.triton.workload.kind "LeaderWorkerSet") }}
kind: {{ .Values.triton.workload.kind }}
name: {{ include "engineroom.names.triton" . | quote }}
{{- end -}}

{{- /*
engineroom.autoscaling.metric: name of the metric that is followed at one replica for each unit of it; empty where
only the processor is. Call with the root context.
*/ -}}
{{- define "engineroom.autoscaling.metric" -}}
{{- if eq .Values.autoscaling.signal "custom" -}}{{ .Values.autoscaling.metric }}
{{- else if ne .Values.autoscaling.signal "none" -}}engineroom:load_replicas
{{- end -}}
{{- end -}}

{{- /*
engineroom.autoscaling.behavior: how fast the HPA may change its mind. A direction is a window, over which the most
cautious wish counts, and a share of the replicas that each period may add or take.
Call with the root context.
*/ -}}
{{- define "engineroom.autoscaling.behavior" -}}
{{- range $direction, $limits := .Values.autoscaling.behavior }}
{{ $direction }}:
  stabilizationWindowSeconds: {{ $limits.windowSeconds }}
  policies:
    - type: Percent
      value: {{ $limits.percent }}
      periodSeconds: {{ $limits.periodSeconds }}
{{- end }}
{{- end -}}

{{- /*
engineroom.autoscaling.validations: refusals, for templates/validations.yaml. Renders nothing.
Call with the root context.
*/ -}}
{{- define "engineroom.autoscaling.validations" -}}
{{- $autoscaling := .Values.autoscaling -}}
{{- if ne $autoscaling.kind "none" -}}
{{- if gt (int $autoscaling.minReplicas) (int $autoscaling.maxReplicas) -}}
{{- fail (printf "autoscaling.minReplicas=%d is above autoscaling.maxReplicas=%d: raise the maximum, or lower the minimum" (int $autoscaling.minReplicas) (int $autoscaling.maxReplicas)) -}}
{{- end -}}
{{- if and (has $autoscaling.signal (list "waiting" "queueCompute")) (eq .Values.monitoring.rules "none") -}}
{{- fail (printf "autoscaling.signal=%s follows engineroom:load_replicas, which no rule records while monitoring.rules=none: set monitoring.rules=PrometheusRule (or config), or name a metric of yours with autoscaling.signal=custom and autoscaling.metric" $autoscaling.signal) -}}
{{- end -}}
{{- if and (eq $autoscaling.signal "custom") (not $autoscaling.metric) -}}
{{- fail "autoscaling.signal=custom names no metric: set autoscaling.metric to one that counts the load in units of one replica's capacity, or choose autoscaling.signal=waiting" -}}
{{- end -}}
{{- if and $autoscaling.rules (ne $autoscaling.signal "custom") -}}
{{- fail (printf "autoscaling.rules are recorded for autoscaling.signal=custom only, but it is %s: set autoscaling.signal=custom and autoscaling.metric, or remove the rules" $autoscaling.signal) -}}
{{- end -}}
{{- if and $autoscaling.rules (eq .Values.monitoring.rules "none") -}}
{{- fail "autoscaling.rules are recorded by nobody while monitoring.rules=none: set monitoring.rules=PrometheusRule (or config)" -}}
{{- end -}}
{{- if eq $autoscaling.kind "keda" -}}
{{- if $autoscaling.hpa.cpuUtilization -}}
{{- fail "autoscaling.kind=keda and autoscaling.hpa.cpuUtilization are two autoscalers on one workload, which would undo each other: remove autoscaling.hpa.cpuUtilization, or set autoscaling.kind=hpa" -}}
{{- end -}}
{{- if eq $autoscaling.signal "none" -}}
{{- fail "autoscaling.kind=keda has nothing to follow while autoscaling.signal=none: choose autoscaling.signal=waiting, or scale by processor with autoscaling.kind=hpa" -}}
{{- end -}}
{{- if not $autoscaling.keda.prometheus -}}
{{- fail "autoscaling.kind=keda asks Prometheus itself: set autoscaling.keda.prometheus to its address, such as http://prometheus-operated.monitoring.svc:9090" -}}
{{- end -}}
{{- else if and (eq $autoscaling.signal "none") (not $autoscaling.hpa.cpuUtilization) -}}
{{- fail "autoscaling.kind=hpa has nothing to follow: choose autoscaling.signal=waiting, or set autoscaling.hpa.cpuUtilization" -}}
{{- end -}}
{{- end -}}
{{- end -}}
