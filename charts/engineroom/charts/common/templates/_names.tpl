{{- /*
All names of the release. Templates never build a name themselves.

Template names are global over a chart and its subcharts, so every one here begins with "engineroom.".
*/ -}}

{{- /*
engineroom.names.longestSuffix: the longest thing that is ever put behind the full name.
Each entry is what we append and, behind it, what Kubernetes appends to that in a place that holds 63
characters:
- a Deployment's pods, whose names are their host names too: "-<10 characters of the template's hash>-<5 random ones>";
- the revision label of a StatefulSet's pods, or of those of a LeaderWorkerSet's group of up to four digits: "-<10 of a hash>";
- a CronJob's Jobs: "-<8 to 11 digits of the time>";
- our own Jobs: "-<8 digits of what they do>"; a Job's name is a label of its pods, whose names Kubernetes cuts itself.
Call with the root context.
*/ -}}
{{- define "engineroom.names.longestSuffix" -}}
{{- $longest := "" -}}
{{- range $suffix := list "-triton-0123456789-01234" "-triton-9999-0123456789" "-backup-01234567890" "-restore-01234567" -}}
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

{{- /* engineroom.names.headless: the Service that gives each pod an address. Call with the root context. */ -}}
{{- define "engineroom.names.headless" -}}
{{- printf "%s-headless" (include "engineroom.names.fullname" .) -}}
{{- end -}}

{{- /*
engineroom.names.priorityClass: what the servers' pods name; empty where they name none. One that we create is
cluster-wide, so its name holds the namespace. Call with the root context.
*/ -}}
{{- define "engineroom.names.priorityClass" -}}
{{- $own := ternary (printf "%s-%s" .Release.Namespace (include "engineroom.names.triton" .)) "" .Values.triton.priorityClass.create -}}
{{- default $own .Values.triton.priorityClass.name -}}
{{- end -}}

{{- /* engineroom.names.backup: the CronJob that backs up. Call with the root context. */ -}}
{{- define "engineroom.names.backup" -}}
{{- printf "%s-backup" (include "engineroom.names.fullname" .) -}}
{{- end -}}

{{- /* engineroom.names.values: the ConfigMap that holds the release's values. Call with the root context. */ -}}
{{- define "engineroom.names.values" -}}
{{- printf "%s-values" (include "engineroom.names.fullname" .) -}}
{{- end -}}

{{- /* engineroom.names.serviceAccount: what the pods run as. Call with the root context. */ -}}
{{- define "engineroom.names.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "engineroom.names.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}
