{{/* Rights of the agent, and of the check, which tries what the agent does. docs/security.md has the reasons. */}}
{{- define "sluice.agent.security" -}}
runAsUser: 0
runAsGroup: 0
runAsNonRoot: false
privileged: false
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
  add:
    - BPF
    - NET_ADMIN
    - SYS_ADMIN
    - SYS_PTRACE
    {{- range .Values.agent.extraCapabilities }}
    - {{ . }}
    {{- end }}
seccompProfile:
  type: RuntimeDefault
# The runtime's profile forbids all writing below /sys/fs/bpf, and to read other pods' processes.
appArmorProfile:
  type: Unconfined
{{- with .Values.agent.seLinuxOptions }}
seLinuxOptions:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The node's file systems that capture stands on, where the node mounts them later too. */}}
{{- define "sluice.agent.mounts" -}}
- name: cgroup
  mountPath: /sys/fs/cgroup
  mountPropagation: HostToContainer
  readOnly: true
- name: bpffs
  mountPath: /sys/fs/bpf
  mountPropagation: HostToContainer
{{- end -}}
