{{- define "termgw.labels" -}}
app.kubernetes.io/name: termgw
{{- end }}

{{- define "termgw.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default (printf "%s-slim" .Chart.AppVersion) }}
{{- end }}
