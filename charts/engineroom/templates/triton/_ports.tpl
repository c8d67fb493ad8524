{{- /* engineroom.triton.requestPorts: the Service ports that take requests. Call with the root context. */ -}}
{{- define "engineroom.triton.requestPorts" -}}
{{- if .Values.gateway.enabled -}}
- name: openai
  port: 9000
  targetPort: openai
  appProtocol: http
{{ end -}}
- name: http
  port: 8000
  targetPort: http
  appProtocol: http
- name: grpc
  port: 8001
  targetPort: grpc
  # What routes gRPC speaks HTTP/2 without TLS to the pod.
  appProtocol: kubernetes.io/h2c
{{- end -}}
