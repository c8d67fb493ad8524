{{- /*
engineroom.scheduling.pod: which nodes may run a pod, and which it prefers, as fields of a pod's spec.
Call with: dict "root" $ "component" "triton" "gpus" 1 "nodeSelector" .Values.triton.nodeSelector
"tolerations" .Values.triton.tolerations "spread" true. `gpus` above 0 adds the GPU class's nodes and the taint that
GPU nodes carry; `spread` keeps the pods of a component apart. Spot nodes are for whatever can be started again: all
components take them when spot.provider is set.
*/ -}}
{{- define "engineroom.scheduling.pod" -}}
{{- $required := list -}}
{{- if and (gt (int .gpus) 0) .root.Values.gpu.products -}}
{{- $required = append $required (dict "key" .root.Values.gpu.productLabel "operator" "In" "values" .root.Values.gpu.products) -}}
{{- end -}}
{{- $spot := include "engineroom.scheduling.spot" .root | fromYaml -}}
{{- if and $spot.label .root.Values.spot.required -}}
{{- $required = append $required $spot.label -}}
{{- end -}}
{{- if or $required $spot.label }}
affinity:
  nodeAffinity:
    {{- if $required }}
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions: {{- toYaml $required | nindent 12 }}
    {{- end }}
    {{- if and $spot.label (not .root.Values.spot.required) }}
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        preference:
          matchExpressions: {{- list $spot.label | toYaml | nindent 12 }}
    {{- end }}
{{- end }}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- $tolerations := list -}}
{{- if gt (int .gpus) 0 -}}
{{- $tolerations = append $tolerations (dict "key" .root.Values.gpu.resource "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- with concat $tolerations (default list $spot.tolerations) (default list .tolerations) }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if .spread }}
topologySpreadConstraints:
  {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    # A wish: a pod in the wrong zone serves, one that waits does not.
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "engineroom.labels.selector" (dict "root" $.root "component" $.component) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /*
engineroom.scheduling.spot: the node label of spot nodes, as a match expression, and the taints they carry, by provider.
Sources: learn.microsoft.com/azure/aks/spot-node-pool; docs.aws.amazon.com/eks/latest/userguide/managed-node-groups.html
(capacityType); karpenter.sh/docs/concepts/scheduling (also EKS Auto Mode); cloud.google.com/kubernetes-engine/docs/concepts/spot-vms.
AKS alone taints its spot nodes by itself; on GKE the taint is the custom that its documentation recommends.
Call with the root context; gives YAML of a mapping.
*/ -}}
{{- define "engineroom.scheduling.spot" -}}
{{- $provider := .Values.spot.provider -}}
{{- if eq $provider "aks" -}}
label: {key: kubernetes.azure.com/scalesetpriority, operator: In, values: [spot]}
tolerations:
  - {key: kubernetes.azure.com/scalesetpriority, operator: Equal, value: spot, effect: NoSchedule}
{{- else if eq $provider "eks" -}}
label: {key: eks.amazonaws.com/capacityType, operator: In, values: [SPOT]}
{{- else if eq $provider "karpenter" -}}
label: {key: karpenter.sh/capacity-type, operator: In, values: [spot]}
{{- else if eq $provider "gke" -}}
label: {key: cloud.google.com/gke-spot, operator: In, values: ["true"]}
tolerations:
  - {key: cloud.google.com/gke-spot, operator: Equal, value: "true", effect: NoSchedule}
{{- end -}}
{{- end -}}
