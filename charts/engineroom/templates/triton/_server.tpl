{{- /*
engineroom.triton.server: the container that serves. Call with the root context.
*/ -}}
{{- define "engineroom.triton.server" -}}
{{- $gpus := int (include "engineroom.triton.gpus" .) -}}
{{- $ready := printf "/v2/models/%s/ready" (include "engineroom.triton.clientModel" .) -}}
- name: triton
  image: {{ include "engineroom.images.reference" (dict "root" $ "image" .Values.images.server) }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  {{- include "engineroom.triton.command" . | nindent 2 }}
  env: {{- include "engineroom.triton.environment" . | nindent 4 }}
  ports:
    - name: http
      containerPort: 8000
    - name: grpc
      containerPort: 8001
    - name: metrics
      containerPort: 8002
  # Triton opens its ports when all models are loaded, so the start is over when the client model is ready.
  startupProbe:
    httpGet:
      path: {{ $ready }}
      port: http
    periodSeconds: 2
    timeoutSeconds: 2
    failureThreshold: {{ div (add (include "engineroom.triton.startSeconds" .) 1) 2 }}
  livenessProbe:
    httpGet:
      path: /v2/health/live
      port: http
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  # Not /v2/health/ready, which stays 200 when a model is gone.
  readinessProbe:
    httpGet:
      path: {{ $ready }}
      port: http
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: 3
  lifecycle:
    preStop: {{- include "engineroom.triton.preStop" . | nindent 6 }}
  terminationMessagePolicy: FallbackToLogsOnError
  resources: {{- include "engineroom.triton.resources" (dict "root" $ "gpus" $gpus) | nindent 4 }}
  securityContext: {{- include "engineroom.security.container" . | nindent 4 }}
  volumeMounts:
    {{- include "engineroom.triton.serverMounts" . | nindent 4 }}
    {{- if gt (include "engineroom.triton.nodes" . | int) 1 }}
    {{- include "engineroom.triton.keysMount" . | nindent 4 }}
    {{- end }}
{{- end -}}
