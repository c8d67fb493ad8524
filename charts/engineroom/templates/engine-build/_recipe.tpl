{{- /*
engineroom.engineBuild.hash: what the build makes: the recipe's text and the image that builds it, because an engine
is of one release of TensorRT-LLM. 64 digits. Call with the root context.
*/ -}}
{{- define "engineroom.engineBuild.hash" -}}
{{- $image := include "engineroom.images.reference" (dict "root" $ "image" .Values.images.builder) -}}
{{- printf "%s\n%s" .Values.engineBuild.recipe $image | sha256sum -}}
{{- end -}}

{{- /*
engineroom.engineBuild.reference: where the build publishes to, and what the pods wait for. Call with the root context.
*/ -}}
{{- define "engineroom.engineBuild.reference" -}}
{{- printf "%s:recipe-%s" .Values.engineBuild.to (include "engineroom.engineBuild.hash" .) -}}
{{- end -}}

{{- /*
engineroom.engineBuild.jobName: Kubernetes refuses every change of a Job's template, so the name holds a hash of all
that the template says, the recipe's hash included: an upgrade that changes something makes a new Job, and one that
changes nothing patches nothing. Call with the root context.
*/ -}}
{{- define "engineroom.engineBuild.jobName" -}}
{{- printf "%s-build-%s" (include "engineroom.names.fullname" .) (include "engineroom.engineBuild.podTemplate" . | sha256sum | trunc 8) -}}
{{- end -}}

{{- /* engineroom.engineBuild.claimName: the disk that builds share. Call with the root context. */ -}}
{{- define "engineroom.engineBuild.claimName" -}}
{{- default (printf "%s-build" (include "engineroom.names.fullname" .)) .Values.engineBuild.claim -}}
{{- end -}}

{{- /* engineroom.engineBuild.recipeName: the ConfigMap of one recipe. Call with the root context. */ -}}
{{- define "engineroom.engineBuild.recipeName" -}}
{{- printf "%s-build-%s" (include "engineroom.names.fullname" .) (include "engineroom.engineBuild.hash" . | trunc 8) -}}
{{- end -}}
