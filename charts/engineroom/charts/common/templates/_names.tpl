{{- /*
All names of the release. Templates never build a name themselves.

Template names are global over a chart and its subcharts, so every one here begins with "engineroom.".
*/ -}}

{{- /*
engineroom.names.longestSuffix: the longest thing that is ever put behind the full name.
Each entry is what we append and, behind it, what Kubernetes appends to that in a place that holds 63
characters: "-<10 characters of the template's hash>-<5 random ones>" in the names of a Deployment's pods,
which are their host names too.
Call with the root context.
*/ -}}
{{- define "engineroom.names.longestSuffix" -}}
{{- $longest := "" -}}
{{- range $suffix := list "-triton-0123456789-01234" -}}
{{- if gt (len $suffix) (len $longest) }}{{ $longest = $suffix }}{{ end -}}
{{- end -}}
{{- $longest -}}
{{- end -}}

{{- /*
engineroom.names.fullname: the name of the Service, and the beginning of every other name.
A label value and the name of a Service hold 63 characters (RFC 1123); what is left of them behind the longest
suffix is the budget. A Helm release may be named with 53 characters, with dots, and with a digit in front;
a Service may not (RFC 1035). Whatever had to be changed gets 8 digits of a hash of the original, so that two
releases never share a name.
Call with the root context.
*/ -}}
{{- define "engineroom.names.fullname" -}}
{{- $chart := default .Chart.Name .Values.nameOverride -}}
{{- $wanted := .Release.Name -}}
{{- if not (contains $chart .Release.Name) }}{{ $wanted = printf "%s-%s" .Release.Name $chart }}{{ end -}}
{{- $wanted = default $wanted .Values.fullnameOverride -}}
{{- $budget := sub 63 (len (include "engineroom.names.longestSuffix" .)) | int -}}
{{- $name := $wanted | lower | replace "." "-" -}}
{{- if regexMatch "^[^a-z]" $name }}{{ $name = printf "r-%s" $name }}{{ end -}}
{{- if or (ne $name $wanted) (gt (len $name) $budget) -}}
{{- $hash := sha256sum $wanted | trunc 8 -}}
{{- $name = printf "%s-%s" (trunc (int (sub $budget 9)) $name | trimSuffix "-") $hash -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- /* engineroom.names.triton: the workload that runs Triton. Call with the root context. */ -}}
{{- define "engineroom.names.triton" -}}
{{- printf "%s-triton" (include "engineroom.names.fullname" .) -}}
{{- end -}}

{{- /* engineroom.names.serviceAccount: what the pods run as. Call with the root context. */ -}}
{{- define "engineroom.names.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "engineroom.names.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}
