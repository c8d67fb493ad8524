{{- /*
An engine over several nodes: the pods of a LeaderWorkerSet's group. The first runs mpirun, which starts the ranks of
the others over ssh; these run an sshd and nothing else. Experimental: never run by us on several nodes. All pods are of one image,
which needs Open MPI, `ssh`, `/usr/sbin/sshd` and a user with the number 1000.
The Secret of `engineroom mpi-secret` holds two key pairs: `id` and `authorized_keys` say who may start ranks,
`host_key` and `known_hosts` who a node is, under one alias because the nodes' names come and go.
*/ -}}

{{- /*
engineroom.triton.worker: the container of a node that only computes. sshd hands its own environment on, because
sessions start with an empty one. A group is stopped all at once: this node stays until its ranks have ended, which
mpirun sees to when rank 0 has drained.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.worker" -}}
{{- $gpus := int (include "engineroom.triton.gpus" .) -}}
- name: triton
  image: {{ include "engineroom.images.reference" (dict "root" $ "image" .Values.images.server) }}
  imagePullPolicy: {{ .Values.images.pullPolicy }}
  command: [sh, -c]
  args:
    - |
      {{- if include "engineroom.triton.cached" . }}
      exec 9</leases/{{ include "engineroom.triton.digest" . }}
      flock --shared 9
      {{- end }}
      exec /usr/sbin/sshd -D -e -f /dev/null -p {{ .Values.triton.mpi.port }} \
        -h /etc/engineroom/mpi/host_key \
        -o AuthorizedKeysFile=/etc/engineroom/mpi/authorized_keys \
        -o StrictModes=no -o UsePAM=no -o PidFile=none \
        -o PasswordAuthentication=no -o KbdInteractiveAuthentication=no -o PermitRootLogin=no \
        -o AllowTcpForwarding=no -o X11Forwarding=no -o AllowAgentForwarding=no \
        -o "SetEnv=HOME=/tmp PATH=$PATH LD_LIBRARY_PATH=${LD_LIBRARY_PATH-}"
  env: {{- include "engineroom.triton.environment" . | nindent 4 }}
  ports:
    - name: ssh
      containerPort: {{ .Values.triton.mpi.port }}
  startupProbe:
    tcpSocket:
      port: ssh
    periodSeconds: 2
    failureThreshold: 30
  livenessProbe:
    tcpSocket:
      port: ssh
    periodSeconds: 10
    timeoutSeconds: 5
    failureThreshold: 6
  readinessProbe:
    tcpSocket:
      port: ssh
    periodSeconds: 5
  lifecycle:
    preStop:
      exec:
        command:
          - sh
          - -c
          - |
            sleep {{ .Values.triton.preStopSeconds }}
            left={{ add .Values.triton.drainSeconds 5 }}
            while [ "$left" -gt 0 ] && grep -qs tritonserver /proc/[0-9]*/comm; do sleep 1; left=$((left - 1)); done
  terminationMessagePolicy: FallbackToLogsOnError
  resources: {{- include "engineroom.triton.resources" (dict "root" $ "gpus" $gpus) | nindent 4 }}
  securityContext: {{- include "engineroom.security.container" . | nindent 4 }}
  volumeMounts:
    {{- include "engineroom.triton.serverMounts" . | nindent 4 }}
    {{- include "engineroom.triton.keysMount" . | nindent 4 }}
{{- end -}}

{{- /*
engineroom.triton.leaderScript: waits for the other nodes of the group, then becomes mpirun with the words behind it.
LWS_LEADER_ADDRESS is `<set>-<group>.<set>.<namespace>`, and the other pods are `<set>-<group>-1` and so on.
Call with the root context.
*/ -}}
{{- define "engineroom.triton.leaderScript" -}}
{{- if include "engineroom.triton.cached" . }}
exec 9</leases/{{ include "engineroom.triton.digest" . }}
flock --shared 9
{{- end }}
keys=/etc/engineroom/mpi
ssh="ssh -p {{ .Values.triton.mpi.port }} -i $keys/id -o UserKnownHostsFile=$keys/known_hosts -o HostKeyAlias=engineroom \
  -o StrictHostKeyChecking=yes -o BatchMode=yes -o ConnectTimeout=5"
hosts="$LWS_LEADER_ADDRESS:{{ include "engineroom.triton.gpus" . }}"
left={{ .Values.triton.mpi.startSeconds }}
node=1
while [ "$node" -lt {{ include "engineroom.triton.nodes" . }} ]; do
  host="${LWS_LEADER_ADDRESS%%.*}-$node.${LWS_LEADER_ADDRESS#*.}"
  until $ssh "$host" true; do
    left=$((left - 1))
    if [ "$left" -le 0 ]; then
      echo "no answer from $host in {{ .Values.triton.mpi.startSeconds }} tries: is its pod running, does the image have /usr/sbin/sshd?" >&2
      exit 4
    fi
    sleep 1
  done
  hosts="$hosts,$host:{{ include "engineroom.triton.gpus" . }}"
  node=$((node + 1))
done
# Or it cuts host names at the first dot, which no resolver knows: Open MPI 4's name of the setting, and 5's.
export OMPI_MCA_orte_keep_fqdn_hostnames=1 PRTE_MCA_prte_keep_fqdn_hostnames=1
exec mpirun --mca plm_rsh_agent "$ssh" --host "$hosts" --map-by slot -x PATH -x LD_LIBRARY_PATH "$@"
{{- end -}}

{{- /* engineroom.triton.keysMount: the keys of `engineroom mpi-secret`. Call with the root context. */ -}}
{{- define "engineroom.triton.keysMount" -}}
- name: mpi-keys
  mountPath: /etc/engineroom/mpi
  readOnly: true
{{- end -}}
