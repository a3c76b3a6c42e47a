//! The index of a component that has an image for each of several platforms.

use serde_json::json;

use super::registry::RawManifest;

/// Media type of an index (OCI image specification).
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The index of `images`, by platform. Equal images give equal bytes.
pub fn index(images: &[(&str, &RawManifest)]) -> RawManifest {
    let mut sorted = images.to_vec();
    sorted.sort_by_key(|(platform, _)| *platform);
    let manifests: Vec<serde_json::Value> = sorted
        .iter()
        .map(|(platform, manifest)| {
            let mut parts = platform.split('/');
            let (os, architecture, variant) = (parts.next(), parts.next(), parts.next());
            let mut platform = json!({ "architecture": architecture, "os": os });
            if let (Some(variant), Some(platform)) = (variant, platform.as_object_mut()) {
                platform.insert("variant".to_owned(), json!(variant));
            }
            json!({
                "mediaType": manifest.media_type,
                "digest": manifest.digest(),
                "size": manifest.bytes.len(),
                "platform": platform,
            })
        })
        .collect();
    let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": manifests });
    RawManifest {
        media_type: INDEX.to_owned(),
        bytes: index.to_string().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_building_does_not_matter() {
        let manifest = |text: &'static str| RawManifest {
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            bytes: text.into(),
        };
        let (one, two) = (manifest("1"), manifest("22"));
        let made = index(&[("linux/arm/v7", &two), ("linux/amd64", &one)]);
        assert_eq!(
            made,
            index(&[("linux/amd64", &one), ("linux/arm/v7", &two)])
        );
        let value: serde_json::Value = serde_json::from_slice(&made.bytes).unwrap();
        assert_eq!(value["manifests"][0]["digest"], one.digest());
        assert_eq!(value["manifests"][0]["platform"]["architecture"], "amd64");
        assert_eq!(value["manifests"][1]["platform"]["variant"], "v7");
        assert_eq!(value["manifests"][1]["size"], 2);
    }
}
