//! In which order components are worked on: each as soon as all it is built from is done, so many at a time.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;

/// Something with a name that may need others first.
pub(super) trait Node {
    fn name(&self) -> &str;
    fn needs(&self) -> &BTreeSet<String>;
}

/// Runs `work` for every node, at most `limit` at a time. `nodes` must hold everything that its members need and no circle. The
/// first failure drops all that still runs, and with it its builders.
pub(super) async fn run<'n, N, F, T, E>(
    nodes: &'n [N],
    limit: usize,
    work: impl Fn(&'n N) -> F,
) -> Result<BTreeMap<String, T>, E>
where
    N: Node,
    F: Future<Output = Result<T, E>>,
{
    let mut waiting: Vec<&N> = nodes.iter().collect();
    let mut running = FuturesUnordered::new();
    let mut done = BTreeMap::new();
    loop {
        while running.len() < limit.max(1) {
            let ready = |node: &&N| node.needs().iter().all(|name| done.contains_key(name));
            let Some(position) = waiting.iter().position(ready) else {
                break;
            };
            let node = waiting.remove(position);
            let result = work(node);
            running.push(async move { (node.name().to_owned(), result.await) });
        }
        match running.next().await {
            Some((name, result)) => {
                done.insert(name, result?);
            }
            None => return Ok(done),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::sync::Barrier;

    use super::*;

    struct Item(&'static str, BTreeSet<String>);

    impl Node for Item {
        fn name(&self) -> &str {
            self.0
        }
        fn needs(&self) -> &BTreeSet<String> {
            &self.1
        }
    }

    fn item(name: &'static str, needs: &[&str]) -> Item {
        Item(name, needs.iter().map(|need| (*need).to_owned()).collect())
    }

    #[tokio::test]
    async fn who_has_what_it_needs_does_not_wait_for_others() {
        let items = [item("base", &[]), item("slow", &[]), item("top", &["base"])];
        // `slow` ends only together with `top`.
        let together = Barrier::new(2);
        let done = run(&items, 2, async |item: &Item| {
            if item.0 != "base" {
                together.wait().await;
            }
            Ok::<_, ()>(item.0)
        });
        assert_eq!(done.await.unwrap().len(), 3);
    }

    #[tokio::test]
    async fn no_more_run_than_allowed_and_dependencies_come_first() {
        let items = [
            item("c", &["a", "b"]),
            item("a", &[]),
            item("b", &["a"]),
            item("d", &[]),
            item("e", &[]),
        ];
        let (running, most, order) = (Mutex::new(0), Mutex::new(0), Mutex::new(Vec::new()));
        let done = run(&items, 2, async |item: &Item| {
            *running.lock().unwrap() += 1;
            let now = *running.lock().unwrap();
            let before = *most.lock().unwrap();
            *most.lock().unwrap() = before.max(now);
            tokio::task::yield_now().await;
            *running.lock().unwrap() -= 1;
            order.lock().unwrap().push(item.0);
            Ok::<_, ()>(())
        });
        done.await.unwrap();
        assert_eq!(*most.lock().unwrap(), 2);
        let order = order.into_inner().unwrap();
        let at = |name| order.iter().position(|item| *item == name).unwrap();
        assert!(at("a") < at("b") && at("b") < at("c"), "{order:?}");
    }

    #[tokio::test]
    async fn a_failure_ends_everything() {
        let items = [item("a", &[]), item("b", &[]), item("c", &["a"])];
        let result = run(&items, 2, async |item: &Item| {
            if item.0 == "b" {
                return Err("b");
            }
            std::future::pending::<()>().await;
            Ok(())
        });
        assert_eq!(result.await, Err("b"));
    }
}
