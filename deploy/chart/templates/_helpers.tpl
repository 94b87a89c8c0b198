{{/* Name of the DaemonSet, and beginning of every other name. */}}
{{- define "sluice.name" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name -}}
{{- end -}}
{{- end -}}

{{- define "sluice.ca.name" -}}
{{- include "sluice.name" . }}-ca
{{- end -}}

{{/* Names of what the whole cluster has one of. */}}
{{- define "sluice.cluster.name" -}}
{{- printf "%s-%s" (include "sluice.name" .) .Release.Namespace -}}
{{- end -}}

{{/* Whether the chart's own CA is deployed: "true" or nothing. */}}
{{- define "sluice.ca.deployed" -}}
{{- if not .Values.ca.address }}true{{ end -}}
{{- end -}}

{{- define "sluice.ca.address" -}}
{{- .Values.ca.address | default (printf "https://%s.%s.svc:15012" (include "sluice.ca.name" .) .Release.Namespace) -}}
{{- end -}}

{{/* ConfigMap of the root certificates. */}}
{{- define "sluice.ca.roots" -}}
{{- .Values.ca.rootConfigMap | default (printf "%s-roots" (include "sluice.ca.name" .)) -}}
{{- end -}}

{{- define "sluice.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{- printf "%s@%s" .repository .digest -}}
{{- else -}}
{{- printf "%s:%s" .repository (.tag | default $.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that selectors are made of: they never change. Takes the component's name beside the root. */}}
{{- define "sluice.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "sluice.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Labels of a component's pods. They stay out of the mesh, whatever their namespace's label says. */}}
{{- define "sluice.pod.labels" -}}
{{ include "sluice.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
istio.io/dataplane-mode: none
{{- with .labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "sluice.pod.annotations" -}}
kubectl.kubernetes.io/default-container: {{ .component }}
{{- if .root.Values.metrics.annotations }}
prometheus.io/scrape: "true"
prometheus.io/port: "15020"
prometheus.io/path: /stats/prometheus
{{- end }}
{{- with .annotations }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* A map as OTEL_* variables hold it: key=value,key=value, percent-encoded. */}}
{{- define "sluice.otel.list" -}}
{{- $pairs := list -}}
{{- range $key, $value := . -}}
{{- $pairs = append $pairs (printf "%s=%s" $key ($value | toString | urlquery | replace "+" "%20")) -}}
{{- end -}}
{{- join "," $pairs -}}
{{- end -}}

{{/* What the schema cannot say. */}}
{{- define "sluice.validate" -}}
{{- if ne .Values.unknownPods "allow" -}}
{{- fail "unknownPods=deny cannot work in a cluster: the agent's own pod and the CA's are not enrolled, so no agent could reach the API server or the CA, nor any pod outside the mesh anything (hint: leave it at `allow`; with nri.enabled new pods of the mesh are captured before they start)" -}}
{{- end -}}
{{- if and .Values.ca.address (not .Values.ca.rootConfigMap) -}}
{{- fail "ca.address names another CA, whose roots are not known (hint: ca.rootConfigMap, a ConfigMap in the release's namespace with the key root-cert.pem; istiod and istio-csr publish istio-ca-root-cert)" -}}
{{- end -}}
{{- with .Values.telemetry -}}
{{- if and .headers .headersSecret.name -}}
{{- fail "telemetry.headers and telemetry.headersSecret.name are both given (hint: put all headers into the Secret)" -}}
{{- end -}}
{{- if and (not .endpoint) (or .protocol .headers .headersSecret.name .certificate.configMap) -}}
{{- fail "telemetry has options but no receiver (hint: telemetry.endpoint, as in http://collector.observability.svc:4317)" -}}
{{- end -}}
{{- end -}}
{{- with .Values.agent.updateStrategy -}}
{{- $surges := has (toString .maxSurge) (list "0" "0%") | not -}}
{{- $stops := has (toString .maxUnavailable) (list "0" "0%") | not -}}
{{- if and (eq .type "RollingUpdate") (eq $surges $stops) -}}
{{- fail "one of agent.updateStrategy.maxSurge and maxUnavailable is 0, and the other is not (hint: maxSurge 1 and maxUnavailable 0 keep every node captured and served)" -}}
{{- end -}}
{{- end -}}
{{- end -}}
