{{- /*
engineroom.gateway.container: the OpenAI front end beside Triton, in the same pod. When the pod is asked to stop it
knows at once (no preStop hook): for triton.preStopSeconds it still takes requests, and asks clients to close their
connections, then it refuses them, and it ends with its last answer, triton.drainSeconds later at most. Triton's preStop
hook waits for that.
Call with the root context.
*/ -}}
{{- define "engineroom.gateway.container" -}}
- name: gateway
  image: {{ include "engineroom.images.reference" (dict "root" $ "image" .Values.images.toolkit) }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  command: [engineroom]
  args:
    - gateway
    - --tree=/models
    - --upstream=127.0.0.1:8001
    - --host=0.0.0.0
    - --port=9000
    - --metrics-port=9002
    {{- with .Values.gateway.modelName }}
    - {{ printf "--model-name=%s" . | quote }}
    {{- end }}
    {{- if .Values.gateway.apiKeysSecret }}
    - --api-keys-file=/etc/engineroom/api-keys/keys
    {{- end }}
    {{- with .Values.gateway.slots }}
    - --slots={{ . }}
    {{- end }}
    {{- with .Values.gateway.maxQueuedRequests }}
    - --max-queued-requests={{ . }}
    {{- end }}
    {{- with .Values.gateway.maxQueuedTokens }}
    - --max-queued-tokens={{ . }}
    {{- end }}
    - --deadline-seconds={{ .Values.gateway.deadlineSeconds }}
    - --accept-seconds={{ .Values.triton.preStopSeconds }}
    - --drain-seconds={{ add .Values.triton.preStopSeconds .Values.triton.drainSeconds }}
  env: {{- include "engineroom.triton.toolkitEnvironment" . | nindent 4 }}
  ports:
    - name: openai
      containerPort: 9000
    - name: openai-metrics
      containerPort: 9002
  startupProbe:
    httpGet:
      path: /health/live
      port: openai
    periodSeconds: 1
    timeoutSeconds: 2
    failureThreshold: 60
  livenessProbe:
    httpGet:
      path: /health/live
      port: openai
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  # Ready when Triton's client model is, and not while it drains.
  readinessProbe:
    httpGet:
      path: /health/ready
      port: openai
    periodSeconds: 5
    timeoutSeconds: 5
    failureThreshold: 3
  terminationMessagePolicy: FallbackToLogsOnError
  resources:
    requests:
      cpu: {{ .Values.gateway.cpu | quote }}
      memory: {{ .Values.gateway.memory }}
      ephemeral-storage: 64Mi
    limits:
      memory: {{ .Values.gateway.memory }}
  securityContext: {{- include "engineroom.security.container" . | nindent 4 }}
  volumeMounts:
    {{- include "engineroom.triton.treeMount" . | nindent 4 }}
    {{- if .Values.gateway.apiKeysSecret }}
    # The folder and not the file: Kubernetes renews a mounted folder when the Secret changes.
    - name: api-keys
      mountPath: /etc/engineroom/api-keys
      readOnly: true
    {{- end }}
    - name: tmp
      mountPath: /tmp
{{- end -}}
