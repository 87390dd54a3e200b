{{- define "chat.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- $name | trunc 52 | trimSuffix "-" -}}
{{- end }}

{{- define "chat.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: service
{{- end }}

{{- define "chat.labels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* The name and namespace of an object, and its labels. Takes a list: the context, and a suffix of the name. */}}
{{- define "chat.metadata" -}}
{{- $ := index . 0 -}}
name: {{ include "chat.fullname" $ }}{{ index . 1 }}
namespace: {{ $.Release.Namespace }}
labels:
  {{- include "chat.labels" $ | nindent 2 }}
{{- end }}

{{- define "chat.image" -}}
{{- with .Values.image -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{- define "chat.host" -}}
{{ include "chat.fullname" . }}.{{ .Release.Namespace }}.svc
{{- end }}

{{- define "chat.scheme" -}}
{{ if .Values.tls.secretName }}https{{ else }}http{{ end }}
{{- end }}

{{- define "chat.mongoSecret" -}}
{{ .Values.mongodb.existingSecret | default (include "chat.fullname" .) }}
{{- end }}

{{- define "chat.accessSecret" -}}
{{ .Values.access.existingSecret | default (include "chat.fullname" .) }}
{{- end }}

{{- define "chat.hasAccessFile" -}}
{{- if or .Values.access.existingSecret .Values.access.file }}true{{ end -}}
{{- end }}

{{- /* The seconds within which every request but a stream is answered, rounded up. */}}
{{- define "chat.longestRequest" -}}
{{ addf (float64 .Values.settings.max_wait_s) (float64 .Values.settings.deadline_s) | ceil | int }}
{{- end }}

{{- /* What no image may do: run as root, write to its files, gain rights. */}}
{{- define "chat.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "chat.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* Fails with what to do, before anything is installed. */}}
{{- define "chat.validate" -}}
{{- $v := .Values -}}
{{- if not $v.image.repository }}{{ fail "image.repository: name the image that you have built and pushed" }}{{ end -}}
{{- with $v.mongodb }}
{{- if and (not .uri) (not .existingSecret) }}{{ fail "mongodb: set existingSecret, the Secret with the connection string, or uri" }}{{ end -}}
{{- if and .uri .existingSecret }}{{ fail "mongodb: set existingSecret or uri, not both" }}{{ end -}}
{{- end -}}
{{- with $v.access }}
{{- $wanted := has .mode (list "tokens" "both") -}}
{{- if and .file .existingSecret }}{{ fail "access: set existingSecret or file, not both" }}{{ end -}}
{{- if and $wanted (not .file) (not .existingSecret) }}{{ fail (printf "access.mode=%s needs the access file: set access.existingSecret or access.file" .mode) }}{{ end -}}
{{- if and (not $wanted) (or .file .existingSecret) }}{{ fail (printf "access.mode=%s does not use the access file: set access.mode to tokens or both" .mode) }}{{ end -}}
{{- if and (has .mode (list "jwt" "both")) (or (not $v.settings.jwt_issuer) (not $v.settings.jwt_audience)) }}{{ fail (printf "access.mode=%s needs settings.jwt_issuer and settings.jwt_audience" .mode) }}{{ end -}}
{{- if and (ne .mode "off") $v.monitoring.serviceMonitor.enabled (not $v.monitoring.serviceMonitor.tokenSecret) }}{{ fail "monitoring.serviceMonitor.tokenSecret: with access control, Prometheus needs a token that has the right `ops`" }}{{ end -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (gt (int $v.autoscaling.minReplicas) (int $v.autoscaling.maxReplicas)) }}{{ fail "autoscaling.minReplicas is greater than maxReplicas" }}{{ end -}}
{{- if and $v.ingress.enabled (not $v.ingress.hosts) }}{{ fail "ingress.hosts: name at least one host" }}{{ end -}}
{{- if and $v.httpRoute.enabled (not $v.httpRoute.parentRefs) }}{{ fail "httpRoute.parentRefs: name the Gateway" }}{{ end -}}
{{- with $v.telemetry }}
{{- if and .enabled (not .endpoint) (not .sidecar.enabled) }}{{ fail "telemetry: set endpoint, or enable the sidecar" }}{{ end -}}
{{- if and .sidecar.enabled (not .enabled) }}{{ fail "telemetry.sidecar: set telemetry.enabled, too" }}{{ end -}}
{{- if and .sidecar.enabled .endpoint }}{{ fail "telemetry: set endpoint or enable the sidecar, not both" }}{{ end -}}
{{- if and .sidecar.enabled (eq .sidecar.backend "otlp") (not .sidecar.endpoint) }}{{ fail "telemetry.sidecar.endpoint: name the URL of the backend" }}{{ end -}}
{{- if and .sidecar.enabled (not .sidecar.image) }}{{ fail "telemetry.sidecar.image: name the collector's image" }}{{ end -}}
{{- end -}}
{{- end }}
