# Alarms of the machines themselves: what Grafana and Prometheus on one of them could not tell when it is gone.

resource "google_monitoring_notification_channel" "email" {
  count = var.alert_email == null ? 0 : 1

  display_name = "CryptoStream"
  type         = "email"
  labels       = { email_address = var.alert_email }

  depends_on = [google_project_service.this]
}

locals {
  machine_alarms = {
    "a machine is down" = {
      filter    = "metric.type=\"compute.googleapis.com/instance/uptime_total\" AND resource.type=\"gce_instance\" AND metadata.user_labels.app=\"cryptostream\""
      absent    = true
      threshold = null
      content   = "A machine reports no uptime. docs/operations.md: a lost broker, a lost VM."
    }
    "a machine is short of processor" = {
      filter    = "metric.type=\"compute.googleapis.com/instance/cpu/utilization\" AND resource.type=\"gce_instance\" AND metadata.user_labels.app=\"cryptostream\""
      absent    = false
      threshold = 0.9
      content   = "Above 90 % for ten minutes: candles come late. A larger machine_type, or fewer sections."
    }
  }
}

resource "google_monitoring_alert_policy" "machine" {
  for_each = var.alert_email == null ? {} : local.machine_alarms

  display_name          = "CryptoStream: ${each.key}"
  combiner              = "OR"
  notification_channels = [google_monitoring_notification_channel.email[0].id]

  conditions {
    display_name = each.key

    dynamic "condition_absent" {
      for_each = each.value.absent ? [1] : []
      content {
        filter   = each.value.filter
        duration = "300s"
        aggregations {
          alignment_period   = "60s"
          per_series_aligner = "ALIGN_MAX"
        }
      }
    }

    dynamic "condition_threshold" {
      for_each = each.value.absent ? [] : [1]
      content {
        filter          = each.value.filter
        duration        = "600s"
        comparison      = "COMPARISON_GT"
        threshold_value = each.value.threshold
        aggregations {
          alignment_period   = "60s"
          per_series_aligner = "ALIGN_MEAN"
        }
      }
    }
  }

  documentation {
    content = each.value.content
  }
}
