//! What of a file is the cluster's and what is a member's own, in the text itself: people's comments and order stay.
//!
//! A member's own are the table `[node]` and `cluster.hash_key_file`, a path. All else is the cluster's.

use toml_edit::{DocumentMut, Item, Table, TableLike, TomlError, Value};

const NODE: &str = "node";
const CLUSTER: &str = "cluster";
const KEY_FILE: &str = "hash_key_file";
const GENERATION: &str = "generation";

/// Behind all tables that a file can have.
const LAST: isize = isize::MAX / 2;

/// `text` without what is a member's own.
///
/// # Errors
/// When it is not TOML.
pub fn shared_part(text: &str) -> Result<String, TomlError> {
    let mut file: DocumentMut = text.parse()?;
    file.remove(NODE);
    if let Some(cluster) = cluster(&mut file) {
        cluster.remove(KEY_FILE);
    }
    Ok(file.to_string())
}

/// `shared` with what in `own` is a member's own; what `shared` says of that is not kept.
///
/// # Errors
/// When one of them is not TOML.
pub fn with_own_part(shared: &str, own: &str) -> Result<String, TomlError> {
    let (mut file, mut own): (DocumentMut, DocumentMut) = (shared.parse()?, own.parse()?);
    file.remove(NODE);
    if let Some(mut node) = own.remove(NODE) {
        // Where it was in its own file means nothing here.
        if let Some(table) = node.as_table_mut() {
            place_last(table);
        }
        file.insert(NODE, node);
    }
    let mut key_file = cluster(&mut own).and_then(|cluster| cluster.remove(KEY_FILE));
    // A comment behind it would swallow the rest of a table on one line.
    if file.get(CLUSTER).is_some_and(Item::is_inline_table)
        && let Some(value) = key_file.as_mut().and_then(Item::as_value_mut)
    {
        value.decor_mut().clear();
    }
    if let Some(cluster) = cluster(&mut file) {
        cluster.remove(KEY_FILE);
        if let Some(key_file) = key_file {
            cluster.insert(KEY_FILE, key_file);
        }
    }
    Ok(file.to_string())
}

/// `text` with `cluster.generation` set to `generation`.
///
/// # Errors
/// When it is not TOML.
pub fn with_generation(text: &str, generation: u64) -> Result<String, TomlError> {
    let mut file: DocumentMut = text.parse()?;
    if let Some(cluster) = cluster(&mut file) {
        let mut value = Value::from(i64::try_from(generation).unwrap_or(i64::MAX));
        if let Some(before) = cluster.get(GENERATION).and_then(Item::as_value) {
            *value.decor_mut() = before.decor().clone();
        }
        cluster.insert(GENERATION, Item::Value(value));
    }
    Ok(file.to_string())
}

/// `cluster.generation` of `text`, if it says one.
pub fn generation_of(text: &str) -> Option<u64> {
    let mut file: DocumentMut = text.parse().ok()?;
    cluster(&mut file)?.get(GENERATION)?.as_integer().and_then(|generation| u64::try_from(generation).ok())
}

/// `text` with `drain = true` at the backends of these services and names; and how many that were, where it was not so.
///
/// # Errors
/// When it is not TOML.
pub fn with_drains(text: &str, drained: &[(String, String)]) -> Result<(String, usize), TomlError> {
    let mut file: DocumentMut = text.parse()?;
    let mut changed = 0;
    let mut each = |service: &mut dyn TableLike| {
        let name = name_of(service);
        let Some(backends) = service.get_mut("backends") else { return false };
        each_table(backends, &mut |backend| {
            let own = name_of(backend);
            let is_meant = drained.iter().any(|(of, this)| Some(of) == name.as_ref() && Some(this) == own.as_ref());
            let is_new = is_meant && backend.get("drain").and_then(Item::as_bool) != Some(true);
            if is_new {
                backend.insert("drain", Item::Value(true.into()));
                changed += 1;
            }
            is_new
        });
        false
    };
    if let Some(services) = file.get_mut("service") {
        each_table(services, &mut each);
    }
    Ok((file.to_string(), changed))
}

fn cluster(file: &mut DocumentMut) -> Option<&mut dyn TableLike> {
    file.get_mut(CLUSTER)?.as_table_like_mut()
}

fn name_of(table: &dyn TableLike) -> Option<String> {
    table.get("name").and_then(Item::as_str).map(str::to_owned)
}

/// Every table in a list of tables, in either way of writing one; `change` says whether a key was added.
fn each_table(list: &mut Item, change: &mut dyn FnMut(&mut dyn TableLike) -> bool) {
    match list {
        Item::ArrayOfTables(tables) => tables.iter_mut().for_each(|table| _ = change(table)),
        Item::Value(Value::Array(values)) => {
            for table in values.iter_mut().filter_map(Value::as_inline_table_mut) {
                if change(table) {
                    table.fmt();
                }
            }
        }
        _ => {}
    }
}

fn place_last(table: &mut Table) {
    table.set_position(Some(LAST));
    for (_, item) in table.iter_mut() {
        if let Some(table) = item.as_table_mut() {
            place_last(table);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"# Our cluster.
version = 1

[cluster] # edge
name = "edge-1"
hash_key_file = "/etc/tandem/hash.key" # here
generation = 3 # by hand

[[cluster.member]]
id = 1
name = "lb1"

# What is this host's.
[node]
interfaces = ["eth0"]

[node.budgets]
tcp = 7

# What is balanced.
[[service]]
name = "web"
backends = [
  { name = "web-1", address = "10.0.2.11" }, # the old one
  { name = "web-2", address = "10.0.2.12", drain = false },
]

[service.health]
kind = "tcp"
"#;

    const OTHER: &str = r#"version = 1
node = { interfaces = ["bond0"], name = "lb2" }
cluster = { name = "edge-1", hash_key_file = "hash.key" }
"#;

    #[test]
    fn the_clusters_part_has_nothing_of_the_members() {
        let shared = shared_part(FILE).unwrap();
        for gone in ["eth0", "budgets", "hash_key_file", "this host's"] {
            assert!(!shared.contains(gone), "{gone}:\n{shared}");
        }
        for kept in
            ["# Our cluster.", "# edge", "# by hand", "# What is balanced.", "# the old one", "[service.health]"]
        {
            assert!(shared.contains(kept), "{kept}:\n{shared}");
        }
        assert_eq!(shared_part(&shared).unwrap(), shared);
    }

    #[test]
    fn a_member_keeps_its_own_part_however_it_is_written() {
        let shared = shared_part(FILE).unwrap();
        let parsed = |text: &str| text.parse::<toml::Table>().unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!(parsed(&with_own_part(&shared, FILE).unwrap()), parsed(FILE));
        let others = parsed(&with_own_part(&shared, OTHER).unwrap());
        assert_eq!((&others["node"], &others["service"]), (&parsed(OTHER)["node"], &parsed(FILE)["service"]));
        assert_eq!(others["cluster"]["hash_key_file"].as_str(), Some("hash.key"));
        assert_eq!(others["cluster"]["generation"].as_integer(), Some(3));
        // Whatever a peer says of it.
        let foreign = parsed(&with_own_part(FILE, OTHER).unwrap());
        assert_eq!(foreign["node"], parsed(OTHER)["node"]);
        let bare = with_own_part(FILE, "version = 1\n").unwrap();
        assert!(!bare.contains("eth0") && !bare.contains("hash_key_file"), "{bare}");
        let back = with_own_part(&shared_part(OTHER).unwrap(), FILE).unwrap();
        assert_eq!(parsed(&back)["node"], parsed(FILE)["node"]);
    }

    #[test]
    fn the_generation_is_set_and_the_comment_stays() {
        let next = with_generation(FILE, 9).unwrap();
        assert!(next.contains("generation = 9 # by hand\n"), "{next}");
        assert_eq!(next.replace('9', "3"), FILE.replace('9', "3"));
        let first = with_generation(OTHER, 1).unwrap().parse::<toml::Table>().unwrap();
        assert_eq!(first["cluster"]["generation"].as_integer(), Some(1));
    }

    #[test]
    fn drains_are_written_where_they_are_missing() {
        let meant =
            |names: &[&str]| names.iter().map(|name| ("web".to_owned(), (*name).to_owned())).collect::<Vec<_>>();
        let (text, changed) = with_drains(FILE, &meant(&["web-1", "web-2", "web-9"])).unwrap();
        assert_eq!(changed, 2);
        assert!(text.contains(r#"{ name = "web-1", address = "10.0.2.11", drain = true }, # the old one"#), "{text}");
        let twice = with_drains(&text, &meant(&["web-1", "web-2"])).unwrap();
        assert_eq!((twice.0.as_str(), twice.1), (text.as_str(), 0));
    }
}
