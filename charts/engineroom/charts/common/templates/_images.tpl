{{- /*
engineroom.images.reference: an image as the kubelet takes it. A digest wins over a tag, because a tag can be
moved; images.registry replaces the registry of every image, for mirrors and for clusters without internet.
Call with: dict "root" $ "image" .Values.images.server
*/ -}}
{{- define "engineroom.images.reference" -}}
{{- $registry := default .image.registry .root.Values.images.registry -}}
{{- $place := .image.repository -}}
{{- if $registry }}{{ $place = printf "%s/%s" $registry .image.repository }}{{ end -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $place .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $place (default .root.Chart.AppVersion .image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* engineroom.images.pullSecrets: the field imagePullSecrets of a pod, where there are any. Call with the root context. */ -}}
{{- define "engineroom.images.pullSecrets" -}}
{{- with .Values.images.pullSecrets -}}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end -}}
{{- end -}}
