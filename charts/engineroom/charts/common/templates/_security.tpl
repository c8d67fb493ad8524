{{- /*
engineroom.security.pod and engineroom.security.container: what Pod Security "restricted" asks for, and a root
file system that nobody writes to. User 1000 is `triton-server` in NVIDIA's images. fsGroup lets that user
write to fresh volumes. GPUs need none of the rights given up here: the device plugin hands the devices in.
Call with the root context.
*/ -}}
{{- define "engineroom.security.pod" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "engineroom.security.container" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}
