{{- /*
engineroom.backup.mounts and engineroom.backup.volumes: the release's values, and claims whose files are copied.
Call with: dict "root" $ "claims" (list "models")
*/ -}}
{{- define "engineroom.backup.mounts" -}}
- name: release
  mountPath: /release
  readOnly: true
{{- range $index, $claim := .claims }}
- name: source-{{ $index }}
  mountPath: /sources/{{ $claim }}
  readOnly: true
{{- end }}
{{- end -}}

{{- define "engineroom.backup.volumes" -}}
- name: release
  configMap:
    name: {{ include "engineroom.names.values" .root | quote }}
{{- range $index, $claim := .claims }}
- name: source-{{ $index }}
  persistentVolumeClaim:
    claimName: {{ $claim | quote }}
    readOnly: true
{{- end }}
{{- end -}}
