{{- /*
How Triton is started and stopped. Two ways, because the ranks of a TensorRT engine are processes of their own
(Triton's leader mode), while the other runtimes start their own workers from one server.
*/ -}}

{{- /* engineroom.triton.usesMpi: "true" where one replica is several ranks under mpirun. Call with the root context. */ -}}
{{- define "engineroom.triton.usesMpi" -}}
{{- if and (eq .Values.model.runtime "tensorrt") (gt (int .Values.model.worldSize) 1) }}true{{ end -}}
{{- end -}}

{{- /*
engineroom.triton.clientModel: the Triton model that clients call and that readiness asks for.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.clientModel" -}}
{{- default (ternary "tensorrt_llm_bls" "tensorrt_llm" (eq .Values.model.runtime "tensorrt")) .Values.model.clientModel -}}
{{- end -}}

{{- /*
engineroom.triton.flags: flags that every tritonserver of a pod takes, as YAML list items.
--disable-auto-complete-config: the assembled config.pbtxt is complete, and what was checked is what is served.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.flags" -}}
- --model-repository={{ .Values.model.repository }}
- --disable-auto-complete-config
- --exit-timeout-secs={{ .Values.triton.drainSeconds }}
{{- end -}}

{{- /*
engineroom.triton.lease: a line of shell that becomes the command behind it, and keeps its tree in the cache: a lock
that a process inherits and that ends with it, whatever ends it. Call with the root context.
*/ -}}
{{- define "engineroom.triton.lease" -}}
exec 9</leases/{{ include "engineroom.triton.digest" . }} && flock --shared 9 && exec "$@"
{{- end -}}

{{- /*
engineroom.triton.command: command and args of the container.
Under mpirun, rank 0 serves; the others must not, and load the engine's model only. They open no port, so
they need none of their own. Rank 0 leaves its process id for the preStop hook: mpirun, asked to stop, kills its
ranks after a few seconds (open-mpi/ompi issue 12149; after 2 with Open MPI 4.1.4), so it is rank 0 that has to be
asked. `$$$$` is `$$` for the shell: Kubernetes reads `$$` in args as an escaped `$`.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.command" -}}
{{- $cached := include "engineroom.triton.cached" . -}}
{{- if include "engineroom.triton.usesMpi" . -}}
{{- if gt (include "engineroom.triton.nodes" . | int) 1 -}}
command: [sh, -c]
args:
  - | {{- include "engineroom.triton.leaderScript" . | nindent 4 }}
  - mpirun
{{- else if $cached -}}
command: [sh, -c]
args:
  - {{ include "engineroom.triton.lease" . | quote }}
  - mpirun
  - mpirun
{{- else -}}
command: [mpirun]
args:
{{- end }}
  - -n
  - "1"
  - sh
  - -c
  - echo $$$$ > /tmp/rank0.pid; exec tritonserver "$@"
  - rank0
  {{- include "engineroom.triton.flags" . | nindent 2 }}
  - --model-control-mode=none
  - --backend-config=python,shm-region-prefix-name=prefix0_
  {{- range $rank := untilStep 1 (int .Values.model.worldSize) 1 }}
  - ":"
  - -n
  - "1"
  - tritonserver
  {{- include "engineroom.triton.flags" $ | nindent 2 }}
  - --model-control-mode=explicit
  - --load-model=tensorrt_llm
  - --strict-readiness=true
  - --allow-http=false
  - --allow-grpc=false
  - --allow-metrics=false
  - --backend-config=python,shm-region-prefix-name=prefix{{ $rank }}_
  {{- end }}
{{- else -}}
{{- if $cached -}}
command: [sh, -c]
args:
  - {{ include "engineroom.triton.lease" . | quote }}
  - tritonserver
  - tritonserver
{{- else -}}
command: [tritonserver]
args:
{{- end }}
  {{- include "engineroom.triton.flags" . | nindent 2 }}
  - --model-control-mode=none
{{- end }}
{{- end -}}

{{- /* engineroom.triton.startSeconds: from the start of the container to the first answer, at worst. Call with the root context. */ -}}
{{- define "engineroom.triton.startSeconds" -}}
{{- $together := ternary (int .Values.triton.mpi.startSeconds) 0 (gt (include "engineroom.triton.nodes" . | int) 1) -}}
{{- add .Values.triton.loadSeconds $together -}}
{{- end -}}

{{- /*
engineroom.triton.preStop: what runs before the container gets SIGTERM. First it waits until proxies have learned
that the pod left the Service (`preStop.sleep` would do, but Kubernetes 1.29 has it switched off). Then, as long as
answers may take, it waits for the gateway, which still needs Triton for what it has accepted: the gateway's port
closes when its last answer has ended. Under mpirun it then stops rank 0 and waits for it. Nobody is served any more
then, so the SIGTERM behind it may end the other ranks as harshly as mpirun likes.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.preStop" -}}
{{- if or .Values.gateway.enabled (include "engineroom.triton.usesMpi" .) -}}
exec:
  command:
    - sh
    - -c
    - |
      sleep {{ .Values.triton.preStopSeconds }}
      end=$(($(date +%s) + {{ .Values.triton.drainSeconds }}))
      {{- if .Values.gateway.enabled }}
      python3 -c 'if True:
        import socket, sys, time
        while time.time() < float(sys.argv[1]):
          try: socket.create_connection(("127.0.0.1", 9000), 1).close()
          except OSError: break
          time.sleep(0.5)
      ' "$end"
      {{- end }}
      {{- if include "engineroom.triton.usesMpi" . }}
      rank0=$(cat /tmp/rank0.pid)
      kill -TERM "$rank0"
      left=$((end - $(date +%s) + 5))
      while kill -0 "$rank0" && [ "$left" -gt 0 ]; do sleep 1; left=$((left - 1)); done
      {{- end }}
{{- else -}}
exec:
  command: [sleep, {{ .Values.triton.preStopSeconds | quote }}]
{{- end }}
{{- end -}}
