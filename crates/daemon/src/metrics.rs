//! The numbers of services as Prometheus reads them: the text format of OpenMetrics 1.0.

use crate::protocol::Load;
use moat_ingress::{Counted, Visited};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use std::fmt;

/// The media type of what [`text`] writes.
pub const TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The bounds of the histogram, of those by which times are counted: three for each decade.
fn is_shown(nth: usize) -> bool {
    matches!(nth % 6, 0 | 2 | 4)
}

/// All numbers as text.
pub fn text(load: Load) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Numbers(load)));
    let mut written = String::new();
    // A text takes whatever is written to it.
    let _ = text::encode(&mut written, &registry);
    written
}

#[derive(Debug)]
struct Numbers(Load);

/// One line of a family.
type Labels<'a> = Vec<(&'static str, &'a str)>;

/// One line: its labels and value.
type Row<'a, T> = (Labels<'a>, T);

impl Numbers {
    /// Everything that is counted, by service and instance; what is nobody's has neither.
    fn counted(&self) -> Vec<Row<'_, &Counted>> {
        let row = |service, instance, counted| (vec![("service", service), ("instance", instance)], counted);
        let mut rows = vec![row("", "", &self.0.nobody)];
        for service in &self.0.services {
            let slug = service.service.as_str();
            if service.kind.is_none_or(moat_model::ServiceKind::is_public) {
                rows.push(row(slug, "", &service.own));
            }
            let instances = service.instances.iter().filter(|instance| !instance.counted.times.is_empty());
            rows.extend(instances.map(|instance| row(slug, &instance.id, &instance.counted)));
        }
        rows
    }

    /// Of every database that is reached from outside.
    fn visits(&self, number: fn(&Visited) -> u64) -> Vec<Row<'_, u64>> {
        let visited = self.0.services.iter().filter_map(|service| Some((service.service.as_str(), service.visits.as_ref()?)));
        visited.map(|(slug, visited)| (vec![("service", slug)], number(visited))).collect()
    }

    /// Of every instance that runs.
    fn live<T>(&self, number: impl Fn(&crate::protocol::InstanceLoad) -> Option<T>) -> Vec<Row<'_, T>> {
        let mut rows = Vec::new();
        for service in &self.0.services {
            for instance in service.instances.iter().filter(|instance| instance.live) {
                if let Some(number) = number(instance) {
                    rows.push((vec![("service", service.service.as_str()), ("instance", instance.id.as_str())], number));
                }
            }
        }
        rows
    }
}

impl Collector for Numbers {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> fmt::Result {
        let load = &self.0;
        let counted = self.counted();
        let mut statuses = Vec::new();
        for (labels, counted) in &counted {
            for (status, count) in &counted.answers {
                statuses.push((labels, status.to_string(), *count));
            }
        }
        let statuses = statuses.iter().map(|(labels, status, count)| {
            let mut labels: Labels<'_> = (*labels).clone();
            labels.push(("status", status));
            (labels, *count)
        });
        counters(&mut to, "moat_http_requests", "Requests that were answered; 499 are clients that went away before", statuses)?;
        let each = |number: fn(&Counted) -> u64| counted.iter().map(move |(labels, counted)| (labels.clone(), number(counted)));
        counters(
            &mut to,
            "moat_http_received_bytes",
            "Bytes of requests' bodies, and from clients of tunnels",
            each(|counted| counted.received),
        )?;
        counters(&mut to, "moat_http_sent_bytes", "Bytes of answers' bodies, and to clients of tunnels", each(|counted| counted.sent))?;
        gauges(&mut to, "moat_http_requests_open", "Requests and tunnels that are not over", each(|counted| counted.open))?;
        let times = counted.iter().map(|(labels, counted)| (labels.clone(), Times(counted)));
        let help = "From a request's head to the begin of its answer, seconds";
        family(&mut to, "moat_http_response_seconds", help, times)?;
        let connections = [("http", load.connections.0), ("https", load.connections.1)];
        let connections = connections.map(|(scheme, count)| (vec![("scheme", scheme)], count));
        gauges(&mut to, "moat_client_connections_open", "Connections of clients", connections)?;
        let help = "Clients from outside that are connected to a database";
        gauges(&mut to, "moat_database_connections_open", help, self.visits(|visited| visited.open))?;
        counters(&mut to, "moat_database_connections", "Clients from outside that were let in", self.visits(|visited| visited.opened))?;
        let help = "Clients from outside that asked for a database and were not let in";
        counters(&mut to, "moat_database_refused", help, self.visits(|visited| visited.refused))?;
        counters(&mut to, "moat_database_received_bytes", "Bytes from clients of a database", self.visits(|visited| visited.received))?;
        counters(&mut to, "moat_database_sent_bytes", "Bytes to clients of a database", self.visits(|visited| visited.sent))?;
        let lines =
            [("written", load.log_lines.0), ("dropped", load.log_lines.1)].map(|(outcome, count)| (vec![("outcome", outcome)], count));
        counters(&mut to, "moat_access_log_lines", "Lines of the access log", lines)?;
        let sendings = [("sent", load.traces.0), ("failed", load.traces.1)].map(|(outcome, count)| (vec![("outcome", outcome)], count));
        counters(&mut to, "moat_trace_batches", "Batches of traces for the collector", sendings)?;
        let cpu = self.live(|instance| instance.usage.map(|(cpu, _)| seconds(cpu)));
        family(
            &mut to,
            "moat_instance_cpu_seconds",
            "Processor time since an instance began",
            cpu.into_iter().map(|(labels, cpu)| (labels, Counter(cpu))),
        )?;
        gauges(
            &mut to,
            "moat_instance_memory_bytes",
            "Memory of an instance",
            self.live(|instance| instance.usage.map(|(_, memory)| memory)),
        )?;
        gauges(&mut to, "moat_instance_ready", "Whether an instance takes traffic", self.live(|instance| Some(u64::from(instance.ready))))?;
        gauges(
            &mut to,
            "moat_data_plane_answers",
            "Whether the process that serves told what it counted",
            [(Vec::new(), u64::from(load.counted))],
        )?;
        gauges(&mut to, "moat_info", "Which Moat this is", [(vec![("version", load.version.as_str())], 1)])
    }
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of some years are exact")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

/// A counter's value.
struct Counter<T>(T);
/// A gauge's value.
struct Gauge(u64);
/// A histogram.
struct Times<'a>(&'a Counted);

impl<T: prometheus_client::encoding::EncodeCounterValue> EncodeMetric for Counter<T> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_counter::<NoLabelSet, _, u64>(&self.0, None)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

impl EncodeMetric for Gauge {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_gauge(&self.0)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Gauge
    }
}

impl EncodeMetric for Times<'_> {
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        let mut sum = 0;
        for (nth, (bound, count)) in Counted::bounds().map(Some).chain([None]).zip(&self.0.times).enumerate() {
            sum += count;
            match bound {
                Some(bound) if is_shown(nth) => buckets.push((bound, std::mem::take(&mut sum))),
                Some(_) => {}
                None => buckets.push((f64::INFINITY, sum)),
            }
        }
        encoder.encode_histogram::<NoLabelSet>(self.0.nanos as f64 / 1e9, self.0.times.iter().sum(), &buckets, None)
    }
    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

/// A family of which there is nothing is left out.
fn family<'a, T: EncodeMetric>(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl IntoIterator<Item = Row<'a, T>>,
) -> fmt::Result {
    let mut rows = rows.into_iter().peekable();
    let Some((_, first)) = rows.peek() else { return Ok(()) };
    let mut family = to.encode_descriptor(name, help, None, first.metric_type())?;
    for (labels, value) in rows {
        if labels.is_empty() {
            return value.encode(family);
        }
        value.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn counters<'a>(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: impl IntoIterator<Item = Row<'a, u64>>) -> fmt::Result {
    family(to, name, help, rows.into_iter().map(|(labels, value)| (labels, Counter(value))))
}

fn gauges<'a>(to: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: impl IntoIterator<Item = Row<'a, u64>>) -> fmt::Result {
    family(to, name, help, rows.into_iter().map(|(labels, value)| (labels, Gauge(value))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::{InstanceLoad, ServiceLoad};
    use moat_ingress::Counters;
    use moat_model::{ServiceKind, Slug};
    use std::time::Duration;

    #[test]
    fn what_prometheus_reads() {
        let counters = Counters::default();
        counters.answered(200, Duration::from_millis(3));
        counters.answered(503, Duration::from_secs(200));
        counters.sent(70);
        counters.open(2);
        let instance =
            |id: &str, live, counted| InstanceLoad { id: id.to_owned(), live, ready: true, usage: Some((1_500_000, 4096)), counted };
        let shop = ServiceLoad {
            service: Slug::new("shop").unwrap(),
            kind: Some(ServiceKind::Web),
            phase: None,
            limits: None,
            own: Counted::default(),
            visits: None,
            instances: vec![instance("shop-1", true, counters.read()), instance("shop-0", false, counters.read())],
        };
        let worker = ServiceLoad {
            service: Slug::new("mailer").unwrap(),
            kind: Some(ServiceKind::Worker),
            instances: vec![instance("mailer-1", true, Counted::default())],
            ..shop.clone()
        };
        let orders = ServiceLoad {
            service: Slug::new("orders").unwrap(),
            kind: Some(ServiceKind::Postgres),
            visits: Some(Visited { open: 2, opened: 5, refused: 1, received: 30, sent: 40 }),
            instances: Vec::new(),
            ..shop.clone()
        };
        let services = vec![shop, worker, orders];
        let text = text(Load { services, connections: (3, 4), counted: true, version: "1.2.3".to_owned(), ..Load::default() });
        for line in [
            "# TYPE moat_http_requests counter",
            r#"moat_http_requests_total{service="shop",instance="shop-1",status="200"} 1"#,
            r#"moat_http_requests_total{service="shop",instance="shop-0",status="503"} 1"#,
            r#"moat_http_sent_bytes_total{service="shop",instance="shop-1"} 70"#,
            r#"moat_http_requests_open{service="shop",instance="shop-1"} 2"#,
            r#"moat_http_requests_open{service="shop",instance=""} 0"#,
            r#"moat_http_requests_open{service="",instance=""} 0"#,
            r#"moat_http_response_seconds_bucket{le="0.002",service="shop",instance="shop-1"} 0"#,
            r#"moat_http_response_seconds_bucket{le="0.005",service="shop",instance="shop-1"} 1"#,
            r#"moat_http_response_seconds_bucket{le="100.0",service="shop",instance="shop-1"} 1"#,
            r#"moat_http_response_seconds_bucket{le="+Inf",service="shop",instance="shop-1"} 2"#,
            r#"moat_http_response_seconds_count{service="shop",instance="shop-1"} 2"#,
            r#"moat_client_connections_open{scheme="https"} 4"#,
            r#"moat_instance_cpu_seconds_total{service="mailer",instance="mailer-1"} 1.5"#,
            r#"moat_instance_memory_bytes{service="mailer",instance="mailer-1"} 4096"#,
            r#"moat_database_connections_open{service="orders"} 2"#,
            r#"moat_database_connections_total{service="orders"} 5"#,
            r#"moat_database_refused_total{service="orders"} 1"#,
            r#"moat_database_received_bytes_total{service="orders"} 30"#,
            r#"moat_database_sent_bytes_total{service="orders"} 40"#,
            "moat_data_plane_answers 1",
            r#"moat_info{version="1.2.3"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing:\n{text}");
        }
        assert!(!text.contains(r#"moat_instance_cpu_seconds_total{service="shop",instance="shop-0"}"#), "it is gone");
        assert!(!text.contains(r#"moat_http_requests_open{service="mailer""#), "nobody asks a worker");
        assert_eq!(text.matches("moat_database_connections_open{").count(), 1, "of databases only");
        assert!(text.ends_with("# EOF\n"));
    }
}
