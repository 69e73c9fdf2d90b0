# Alarms that come from outside of the machines: what Grafana and Prometheus on one of them could not tell when it is
# gone. That nothing arrives or nothing is built any more is seen in the buckets, whatever the cause is.

resource "google_monitoring_notification_channel" "email" {
  count = var.alert_email == null ? 0 : 1

  display_name = "CryptoStream"
  type         = "email"
  labels       = { email_address = var.alert_email }

  depends_on = [google_project_service.this]
}

locals {
  of_machines = "resource.type=\"gce_instance\" AND metadata.user_labels.app=\"cryptostream\""
  of_writes   = "metric.type=\"storage.googleapis.com/api/request_count\" AND metric.labels.method=\"WriteObject\" AND metric.labels.response_code=\"OK\" AND resource.type=\"gcs_bucket\""

  # Something that should be there and is not for so many seconds. Of the buckets' writes, all kinds count as one.
  absences = {
    "a machine is down" = {
      filter  = "metric.type=\"compute.googleapis.com/instance/uptime_total\" AND ${local.of_machines}"
      seconds = 300
      aligner = "ALIGN_MAX"
      reducer = null
      content = "A machine reports no uptime. docs/operations.md: a lost broker, a lost VM."
    }
    "nothing reaches the raw lake" = {
      filter  = "${local.of_writes} AND resource.labels.bucket_name=\"${google_storage_bucket.raw.name}\""
      seconds = 600
      aligner = "ALIGN_SUM"
      reducer = "REDUCE_SUM"
      content = "Consumers claim every minute, also when nothing comes. Kafka keeps what comes for ${var.kafka.retention_hours} hours: bring the consumers back by then (the pipeline VM: sudo dc ps), or Kafka."
    }
    "no window is built" = {
      filter  = "${local.of_writes} AND resource.labels.bucket_name=\"${google_storage_bucket.parquet.name}\""
      seconds = 1200
      aligner = "ALIGN_SUM"
      reducer = "REDUCE_SUM"
      content = "A window's Parquet is written every five minutes. Is Dagster running (its VM: sudo dc ps)? Do the producers receive anything (the pipeline VM: sudo dc logs producer)? The sensor builds what was left out."
    }
  }
}

resource "google_monitoring_alert_policy" "absence" {
  for_each = { for name, absence in local.absences : name => absence if var.alert_email != null }

  display_name          = "CryptoStream: ${each.key}"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email[0].id]

  conditions {
    display_name = each.key

    condition_absent {
      filter   = each.value.filter
      duration = "${each.value.seconds}s"
      aggregations {
        alignment_period     = "60s"
        per_series_aligner   = each.value.aligner
        cross_series_reducer = each.value.reducer
      }
    }
  }

  documentation {
    content = each.value.content
  }
}

# Said by a machine itself, in the project's log (modules/node/startup.sh).
resource "google_monitoring_alert_policy" "disks" {
  count = var.alert_email == null ? 0 : 1

  display_name          = "CryptoStream: a disk is nearly full"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email[0].id]

  conditions {
    display_name = "80 % or more"

    condition_matched_log {
      filter = "logName=\"projects/${var.project}/logs/cryptostream-disks\" AND severity>=WARNING"
    }
  }

  alert_strategy {
    auto_close = "86400s"
    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    content = "The log cryptostream-disks says which. A larger disk_gb, then the machine's next boot (docs/operations.md). On a broker also: fewer hours (kafka.retention_hours)."
  }
}

resource "google_monitoring_alert_policy" "processor" {
  count = var.alert_email == null ? 0 : 1

  display_name          = "CryptoStream: a machine is short of processor"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email[0].id]

  conditions {
    display_name = "above 90 % for ten minutes"

    condition_threshold {
      filter          = "metric.type=\"compute.googleapis.com/instance/cpu/utilization\" AND ${local.of_machines}"
      duration        = "600s"
      comparison      = "COMPARISON_GT"
      threshold_value = 0.9
      aggregations {
        alignment_period   = "60s"
        per_series_aligner = "ALIGN_MEAN"
      }
    }
  }

  documentation {
    content = "Candles come late. A larger machine_type, or fewer sections."
  }
}
