{{- /*
Pieces of the network policies. Probes come from the node itself, which every network plugin lets in.
*/ -}}

{{- /* engineroom.networkpolicy.dns: an egress rule: names. Call with the root context. */ -}}
{{- define "engineroom.networkpolicy.dns" -}}
- to: {{- toYaml .Values.networkPolicy.dns | nindent 4 }}
  ports:
    - port: 53
      protocol: UDP
    - port: 53
      protocol: TCP
{{- end -}}

{{- /* engineroom.networkpolicy.storage: egress rules: object storage, and what more the user names. Call with the root context. */ -}}
{{- define "engineroom.networkpolicy.storage" -}}
- to: {{- toYaml .Values.networkPolicy.storage.to | nindent 4 }}
  ports:
    {{- range .Values.networkPolicy.storage.ports }}
    - port: {{ . }}
      protocol: TCP
    {{- end }}
{{- with .Values.networkPolicy.extraEgress }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- /* engineroom.networkpolicy.metadata: name, namespace and labels. Call with: dict "root" $ "name" "…" "component" "…" */ -}}
{{- define "engineroom.networkpolicy.metadata" -}}
name: {{ .name | quote }}
namespace: {{ .root.Release.Namespace | quote }}
labels: {{- include "engineroom.labels.all" . | nindent 2 }}
{{- end -}}
