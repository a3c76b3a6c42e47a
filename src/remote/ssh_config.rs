//! What `ssh -G` prints, read into types, and the placeholders that it leaves in.
//!
//! Boundary: text in, values out; runs nothing. Keys that nobody here asks for are passed over.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// What OpenSSH would do for one host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) user: Option<String>,
    pub(super) host: Option<String>,
    pub(super) port: Option<u16>,
    pub(super) identity_files: Vec<String>,
    pub(super) certificate_files: Vec<String>,
    pub(super) identities_only: bool,
    pub(super) identity_agent: Option<String>,
    pub(super) known_hosts: Vec<String>,
    pub(super) revoked_host_keys: Option<String>,
    pub(super) host_key_alias: Option<String>,
    pub(super) jump: Option<String>,
    pub(super) proxy_command: Option<String>,
    pub(super) proxy_passes_descriptor: bool,
    pub(super) connect_timeout: Option<Duration>,
    pub(super) alive_interval: Option<Duration>,
    pub(super) alive_count: Option<usize>,
    pub(super) family: Family,
    pub(super) bind_address: Option<String>,
    pub(super) bind_interface: Option<String>,
    pub(super) known_hosts_command: Option<String>,
}

/// Which addresses of a name are used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Family {
    #[default]
    Any,
    V4,
    V6,
}

pub(super) fn parse(text: &str) -> Settings {
    let mut settings = Settings::default();
    for line in text.lines() {
        let Some((key, value)) = line.trim().split_once(char::is_whitespace) else {
            continue;
        };
        let value = value.trim();
        let some = || (!value.is_empty() && value != "none").then(|| value.to_owned());
        match key.to_ascii_lowercase().as_str() {
            "user" => settings.user = some(),
            "hostname" => settings.host = some(),
            "port" => settings.port = value.parse().ok(),
            "identityfile" => settings.identity_files.extend(some()),
            "certificatefile" => settings.certificate_files.extend(some()),
            "identitiesonly" => settings.identities_only = is_true(value),
            // `none` means something here.
            "identityagent" => settings.identity_agent = Some(value.to_owned()),
            "userknownhostsfile" | "globalknownhostsfile" => {
                settings.known_hosts.extend(paths(value));
            }
            "revokedhostkeys" => settings.revoked_host_keys = some(),
            "hostkeyalias" => settings.host_key_alias = some(),
            "proxyjump" => settings.jump = some(),
            "proxycommand" => settings.proxy_command = some(),
            "proxyusefdpass" => settings.proxy_passes_descriptor = is_true(value),
            "connecttimeout" => settings.connect_timeout = seconds(value),
            "serveraliveinterval" => settings.alive_interval = seconds(value),
            "serveralivecountmax" => settings.alive_count = value.parse().ok(),
            "addressfamily" => {
                settings.family = match value {
                    "inet" => Family::V4,
                    "inet6" => Family::V6,
                    _ => Family::Any,
                }
            }
            "bindaddress" => settings.bind_address = some(),
            "bindinterface" => settings.bind_interface = some(),
            "knownhostscommand" => settings.known_hosts_command = some(),
            _ => {}
        }
    }
    settings
}

fn is_true(value: &str) -> bool {
    matches!(value, "yes" | "true")
}

fn seconds(value: &str) -> Option<Duration> {
    let seconds = value.parse().ok()?;
    // OpenSSH's zero is "not at all", which is what its absence says here.
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// Several paths on one line. ssh prints them without quotes, so a space counts only before what begins a path.
fn paths(value: &str) -> Vec<String> {
    let mut list: Vec<String> = Vec::new();
    for word in value.split(' ') {
        match list.last_mut() {
            Some(last) if !word.starts_with(['/', '~', '%', '$']) => {
                last.push(' ');
                last.push_str(word);
            }
            _ => list.push(word.to_owned()),
        }
    }
    list.retain(|path| !path.is_empty() && path != "none");
    list
}

/// What stands behind the placeholders of one host.
#[derive(Debug)]
pub(super) struct Tokens<'a> {
    pub(super) home: Option<&'a Path>,
    /// As it was asked for, before ssh's configuration named another.
    pub(super) alias: &'a str,
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) user: &'a str,
    pub(super) local_user: &'a str,
    pub(super) host_key_alias: Option<&'a str>,
    pub(super) variable: fn(&str) -> Option<String>,
}

impl Tokens<'_> {
    /// A path with `~`, `%` and `${}` replaced; the placeholder that nobody here knows is the error.
    pub(super) fn path(&self, text: &str) -> Result<PathBuf, String> {
        let text = match (text.strip_prefix("~/"), self.home) {
            (Some(rest), Some(home)) => format!("{}/{rest}", home.display()),
            (Some(_), None) => return Err("~".into()),
            (None, _) => text.to_owned(),
        };
        self.expand(&self.variables(&text)?).map(PathBuf::from)
    }

    /// A text with `%` replaced.
    pub(super) fn expand(&self, text: &str) -> Result<String, String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text.chars();
        while let Some(c) = rest.next() {
            if c != '%' {
                expanded.push(c);
                continue;
            }
            let letter = rest.next().ok_or("%")?;
            match letter {
                '%' => expanded.push('%'),
                'd' => expanded.push_str(&self.home.ok_or("%d")?.to_string_lossy()),
                'h' => expanded.push_str(self.host),
                'k' => expanded.push_str(self.host_key_alias.unwrap_or(self.alias)),
                'n' => expanded.push_str(self.alias),
                'p' => expanded.push_str(&self.port.to_string()),
                'r' => expanded.push_str(self.user),
                'u' => expanded.push_str(self.local_user),
                other => return Err(format!("%{other}")),
            }
        }
        Ok(expanded)
    }

    fn variables(&self, text: &str) -> Result<String, String> {
        let mut expanded = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, behind) = after.split_once('}').ok_or("${")?;
            expanded.push_str(before);
            expanded.push_str(&(self.variable)(name).ok_or_else(|| format!("${{{name}}}"))?);
            rest = behind;
        }
        expanded.push_str(rest);
        Ok(expanded)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tokens() -> Tokens<'static> {
        Tokens {
            home: Some(Path::new("/home/me")),
            alias: "web",
            host: "10.0.0.7",
            port: 2222,
            user: "deploy",
            local_user: "me",
            host_key_alias: None,
            variable: |name| (name == "SET").then(|| "value".to_owned()),
        }
    }

    #[test]
    fn what_ssh_prints() {
        let settings = parse(
            "host web\nuser deploy\nhostname 10.0.0.7\nport 2222\nidentitiesonly yes\n\
             identityfile ~/.ssh/a\nidentityfile /b c/d\nuserknownhostsfile /a/b /c d/e ~/f\n\
             proxyjump a@b:3,c\nproxycommand none\nconnecttimeout 7\nserveraliveinterval 0\n\
             identityagent none\naddressfamily inet6\nunknownthing x\n",
        );
        assert_eq!(settings.user.as_deref(), Some("deploy"));
        assert_eq!(settings.port, Some(2222));
        assert_eq!(settings.identity_files, ["~/.ssh/a", "/b c/d"]);
        assert_eq!(settings.known_hosts, ["/a/b", "/c d/e", "~/f"]);
        assert_eq!(settings.jump.as_deref(), Some("a@b:3,c"));
        assert_eq!(settings.proxy_command, None);
        assert_eq!(settings.connect_timeout, Some(Duration::from_secs(7)));
        assert_eq!(settings.alive_interval, None);
        assert_eq!(settings.identity_agent.as_deref(), Some("none"));
        assert_eq!(settings.family, Family::V6);
        assert!(settings.identities_only);
    }

    #[test]
    fn placeholders() {
        let path = |text| tokens().path(text).map(|path| path.display().to_string());
        assert_eq!(
            path("~/.ssh/%r@%h"),
            Ok("/home/me/.ssh/deploy@10.0.0.7".into())
        );
        assert_eq!(path("%d/${SET}/100%%"), Ok("/home/me/value/100%".into()));
        assert_eq!(path("/x/%C"), Err("%C".into()));
        assert_eq!(path("/x/${UNSET}"), Err("${UNSET}".into()));
        assert_eq!(tokens().expand("nc %h %p").unwrap(), "nc 10.0.0.7 2222");
        assert_eq!(tokens().expand("50%"), Err("%".into()));
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "(\\PC|\n){0,300}") {
            parse(&text);
            let _ = tokens().path(&text);
        }
    }
}
