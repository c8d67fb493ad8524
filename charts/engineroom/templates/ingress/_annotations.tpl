{{- /*
engineroom.ingress.annotations: what the two controllers that are known here need for streams of tokens, and for
sending a session's requests to the pod that has its KV cache; the user's own annotations win.
Call with the root context; gives YAML.

haproxy: github.com/haproxytech/kubernetes-ingress, maintained. Hashing is consistent and bounded: no pod gets more than
ingress.hash.bound percent of the average number of requests; the next one on the ring takes the rest
(hash-balance-factor, HAProxy's configuration manual).
nginx: github.com/kubernetes/ingress-nginx, retired in March 2026: no more fixes. Its hash knows no bound, so a popular
session heats one pod up.
*/ -}}
{{- define "engineroom.ingress.annotations" -}}
{{- $found := dict -}}
{{- $seconds := .Values.ingress.timeoutSeconds -}}
{{- $header := .Values.ingress.hash.header -}}
{{- $secret := .Values.ingress.basicAuthSecret -}}
{{- if eq .Values.ingress.controller "haproxy" -}}
{{- $_ := set $found "haproxy.org/timeout-server" (printf "%ds" (int $seconds)) -}}
{{- $_ := set $found "haproxy.org/timeout-tunnel" (printf "%ds" (int $seconds)) -}}
{{- if $header -}}
{{- $_ := set $found "haproxy.org/load-balance" (printf "hdr(%s)" $header) -}}
{{- $_ := set $found "haproxy.org/backend-config-snippet" (printf "hash-type consistent\nhash-balance-factor %d" (int .Values.ingress.hash.bound)) -}}
{{- end -}}
{{- if $secret -}}
{{- $_ := set $found "haproxy.org/auth-type" "basic-auth" -}}
{{- $_ := set $found "haproxy.org/auth-secret" $secret -}}
{{- end -}}
{{- else if eq .Values.ingress.controller "nginx" -}}
{{- $nginx := "nginx.ingress.kubernetes.io" -}}
{{- $_ := set $found (printf "%s/proxy-buffering" $nginx) "off" -}}
{{- $_ := set $found (printf "%s/proxy-request-buffering" $nginx) "off" -}}
{{- $_ := set $found (printf "%s/proxy-read-timeout" $nginx) (toString $seconds) -}}
{{- $_ := set $found (printf "%s/proxy-send-timeout" $nginx) (toString $seconds) -}}
{{- $_ := set $found (printf "%s/proxy-body-size" $nginx) .Values.ingress.bodySize -}}
{{- if $header -}}
{{- $_ := set $found (printf "%s/upstream-hash-by" $nginx) (printf "$http_%s" ($header | lower | replace "-" "_")) -}}
{{- end -}}
{{- if $secret -}}
{{- $_ := set $found (printf "%s/auth-type" $nginx) "basic" -}}
{{- $_ := set $found (printf "%s/auth-secret" $nginx) $secret -}}
{{- end -}}
{{- end -}}
{{- with merge (deepCopy .Values.ingress.annotations) $found }}{{ toYaml . }}{{ end -}}
{{- end -}}
