{{- define "chat.telemetryEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name={{ .Release.Namespace }},k8s.deployment.name={{ include "chat.fullname" . }},k8s.pod.name=$(POD_NAME),k8s.node.name=$(NODE_NAME)
{{- with .Values.telemetry }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | default "http://127.0.0.1:4318" | quote }}
- name: OTEL_TRACES_SAMPLER
  value: parentbased_traceidratio
- name: OTEL_TRACES_SAMPLER_ARG
  value: {{ .traceRatio | toString | quote }}
{{- with .headersSecret }}
- name: OTEL_EXPORTER_OTLP_HEADERS
  valueFrom: {secretKeyRef: {name: {{ . }}, key: {{ $.Values.telemetry.headersSecretKey }}}}
{{- end }}
{{- end }}
{{- end }}

{{- /* A native sidecar: it starts before the service and stops after it, so a drain is reported, too. */}}
{{- define "chat.collector" -}}
{{- with .Values.telemetry.sidecar -}}
- name: collector
  image: {{ .image }}
  restartPolicy: Always
  args:
    - --config=/etc/collector/collector.yaml
    {{- if eq .backend "newrelic" }}
    - --config=/etc/collector/newrelic.yaml
    {{- end }}
  {{- with .endpoint }}
  env:
    - {name: OTLP_ENDPOINT, value: {{ . | quote }}}
  {{- end }}
  securityContext:
    {{- include "chat.containerSecurity" $ | nindent 4 }}
  {{- with .envSecret }}
  envFrom:
    - secretRef: {name: {{ . }}}
  {{- end }}
  resources:
    {{- toYaml .resources | nindent 4 }}
  volumeMounts:
    - {name: collector, mountPath: /etc/collector, readOnly: true}
{{- end }}
{{- end }}
