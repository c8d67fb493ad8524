{{- /*
engineroom.engineBuild.podTemplate: metadata and spec of the pod that builds. Call with the root context.
*/ -}}
{{- define "engineroom.engineBuild.podTemplate" -}}
{{- $build := dict "root" $ "component" "engine-build" "gpus" (int .Values.engineBuild.gpus) -}}
{{- $_ := set $build "nodeSelector" .Values.engineBuild.nodeSelector -}}
{{- $_ := set $build "tolerations" .Values.engineBuild.tolerations -}}
metadata:
  labels: {{- include "engineroom.labels.pod" $build | nindent 4 }}
spec:
  serviceAccountName: {{ include "engineroom.names.serviceAccount" . | quote }}
  automountServiceAccountToken: false
  enableServiceLinks: false
  {{- with .Values.gpu.runtimeClass }}
  runtimeClassName: {{ . | quote }}
  {{- end }}
  restartPolicy: Never
  securityContext: {{- include "engineroom.security.pod" . | nindent 4 }}
  {{- with include "engineroom.images.pullSecrets" . }}
  {{- . | nindent 2 }}
  {{- end }}
  {{- with include "engineroom.scheduling.pod" $build | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  containers:
    - name: build
      image: {{ include "engineroom.images.reference" (dict "root" $ "image" .Values.images.builder) }}
      imagePullPolicy: {{ .Values.images.pullPolicy }}
      command: [sh, -ec]
      args:
        - |
          # What is published is not built again. A store that holds nothing of this name yet is no reason to stop.
          if engineroom list {{ .Values.engineBuild.to | squote }} --output json | grep -qF {{ printf "recipe-%s" (include "engineroom.engineBuild.hash" .) | squote }}; then
            echo "{{ include "engineroom.engineBuild.reference" . }} is published already"
            exit 0
          fi
          # Each stage finds in the claim what an earlier Job has left there; an engine whose key was published by
          # whomever is taken from the store.
          recipe="--recipe /recipe/engineroom.yaml --work /build/stages"
          engineroom fetch $recipe
          engineroom plan $recipe
          engineroom build $recipe --published {{ .Values.engineBuild.to | squote }}
          engineroom assemble $recipe
          engineroom publish /build/stages/repository --to {{ include "engineroom.engineBuild.reference" . | squote }}
      env:
        - name: HOME
          value: /tmp
        - name: ENGINEROOM_CACHE
          value: /build/cache
        {{- if gt (int .Values.engineBuild.gpus) 0 }}
        - name: NVIDIA_DRIVER_CAPABILITIES
          value: compute,utility
        {{- end }}
        {{- range $name, $value := .Values.engineBuild.environment }}
        - name: {{ $name | quote }}
          value: {{ $value | quote }}
        {{- end }}
      {{- with .Values.engineBuild.secrets }}
      envFrom:
        {{- range . }}
        - secretRef:
            name: {{ . | quote }}
        {{- end }}
      {{- end }}
      terminationMessagePolicy: FallbackToLogsOnError
      resources:
        requests:
          cpu: {{ .Values.engineBuild.cpu | quote }}
          memory: {{ .Values.engineBuild.memory }}
          ephemeral-storage: 4Gi
          {{- if gt (int .Values.engineBuild.gpus) 0 }}
          {{ .Values.gpu.resource }}: {{ .Values.engineBuild.gpus }}
          {{- end }}
        limits:
          memory: {{ .Values.engineBuild.memory }}
          {{- if gt (int .Values.engineBuild.gpus) 0 }}
          {{ .Values.gpu.resource }}: {{ .Values.engineBuild.gpus }}
          {{- end }}
      securityContext: {{- include "engineroom.security.container" . | nindent 8 }}
      volumeMounts:
        - name: recipe
          mountPath: /recipe
          readOnly: true
        - name: work
          mountPath: /build
        - name: shared-memory
          mountPath: /dev/shm
        - name: tmp
          mountPath: /tmp
  volumes:
    - name: recipe
      configMap:
        name: {{ include "engineroom.engineBuild.recipeName" . | quote }}
    - name: work
      persistentVolumeClaim:
        claimName: {{ include "engineroom.engineBuild.claimName" . | quote }}
    - name: shared-memory
      emptyDir:
        medium: Memory
        sizeLimit: {{ include "engineroom.triton.sharedMemory" . }}
    - name: tmp
      emptyDir:
        sizeLimit: 4Gi
{{- end -}}
