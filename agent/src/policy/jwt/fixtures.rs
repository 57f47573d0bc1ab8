//! Keys of issuers for tests, here and in the proxy's. Nobody else has use for them.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};

const RSA: &str = "MIIEowIBAAKCAQEAw2zSPMaNVH0nM4sLxgsOIvHNysA9UHLG96n0rE4SHnB0A8qIycbGkAKc55kocAX4\
     y6Pdscd+ZZMQIhpAQ8CHz+eakDwrBha2562DW7QU4UtXsiPdXq2iIqTUUIESko4oYoXqNsHOxYTYskKj\
     +6nBxNwVXbS6sgFnzERptJSr973cHqc6AFiBj208EZBVvo6nodu0pPxAncfF+U2PhV++WjvwZFgYEWO5\
     +hw52EPIE6dvoDsqvcaz6NJl71ngUWj1fsDhswO/q1gh7Eqcb5EH/4bNF4dcf/58s1cqA+6acOGFntVX\
     z5z8Tg23+Bs3/cO3yYhh44dyzVaUEoXKVsy5EQIDAQABAoIBABX3WOhQ7xjkmm/uPKwNmRCvelDEa//r\
     btbuyRxHCD1YqYm1jcuUZsRQLt/PdN6mpTEKocQ2Zsw3DBSxO7EB5qIlZ9e3k6RzECsZc07u/nvWcqyI\
     4Hygar2XJnBIGdTUWtC8Obfe8AV+qbbby7/hdHDSxioKwwN4KfkpZXJRVcUaZUacJSSNrgK0RiMBN0th\
     b+z2FDv5l8umvFnhwXz/7FoXNzC9RdxiabTFUgk9P0P5VSY85lv5db3GtwxkdTfV1W5eN/+5z6El2CMs\
     YqhgDOa7/fnuAtDBocOjURgvYSatz9Owwb9rjJ8wSr0Gvasx08kLqSzQt7dZE4jxcbXC2pMCgYEA8EoZ\
     wriB2q7/86SZGlhYjRZdONaLS5IEcIKxl80K/+V2/jbVnUg9jhm2t5roHhKgV+95npxbOrA4VlEjo/B8\
     F0L6yArd1jNY1JEbd/q2E8KgdEvC8rvtaUPd+j0IHeNjY8D4PYjeDQamZaC/iJu824YhcaVvphB8+e3g\
     FuG+kZsCgYEA0DPLALexljMk2RsGneIBypoFLN2U6oH0BWzxysJyaO5hnYGcUG9gGYVqQlQuI478Ynlg\
     jSj8EZmdAO59EuRa73+I7JFxvuYpaV2ZPvIcgQINFoJoCLY8vbFuAXzCDgohuguTsP1AqYGU0H88l7yJ\
     zmtII/0uHAEpgDexKe/QcMMCgYB/RjCY5BPb2h+2VLPHsY3NxU/BYFpNv9zcH02j4zZ1TnyVsEO7WF1K\
     XDJc1A8ohqMpkK2xpo3n6xkcF0QyfJmt1Ity09ams3HUvbt39HLmyoskrlBnM8VPoWP9PMCE3EFzv+18\
     4ncDHUebwuZQnHUPLd+fC4q0wj0AQNAWLqI7CwKBgQCrCUFFL6J1r0IgEDGZVeb+1xRVTRpeo68hHeRs\
     Gtz+Eoaia61L7pLVpGIsZxcYIwh2pRuKGxcoJjdyYnjhIjMJ+I01Oi5lEpMGedvAeAiuek7iJPLt5Td0\
     5eNm2WRZQD2Apq4HgaSzGz5zIXNXe40Bw+QZnI1aeCHtsNKbjuR/HQKBgE9WTM8cZVTbTiVGmjRStdNV\
     75XKGiWpW6hJ1dGBuIV54JtdBfiF6l3FQlcRQJmJ+m9Ib5+ki4gp2+lYI91rlvy5rcPq2oa+Y3+VEK+l\
     RS/CD3p5BFlfDgUMy/VfXkdf1Za3bSiCTZXyiIroNHNveW7toLyB4JmAjMIMer/HLABL";

const RSA_MODULUS: &str = "w2zSPMaNVH0nM4sLxgsOIvHNysA9UHLG96n0rE4SHnB0A8qIycbGkAKc55kocAX4y6Pdscd-ZZMQIhpA\
     Q8CHz-eakDwrBha2562DW7QU4UtXsiPdXq2iIqTUUIESko4oYoXqNsHOxYTYskKj-6nBxNwVXbS6sgFn\
     zERptJSr973cHqc6AFiBj208EZBVvo6nodu0pPxAncfF-U2PhV--WjvwZFgYEWO5-hw52EPIE6dvoDsq\
     vcaz6NJl71ngUWj1fsDhswO_q1gh7Eqcb5EH_4bNF4dcf_58s1cqA-6acOGFntVXz5z8Tg23-Bs3_cO3\
     yYhh44dyzVaUEoXKVsy5EQ";

const EC: &str = "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgbzxZ6sDC7fSxTxKuXTwkcLnWG89VX9NV\
     kc4/wPgXmp2hRANCAAQX3Q+CIoBC51XRcKNVLN1b9y2qcYDUwYkNlprfdDYGwPnDMCechPZHgDTbof0o\
     iVYziuT0+J7QtWRHLUBgzHFa";

const ED: &str = "MC4CAQAwBQYDK2VwBCIEIHWOZLA/xclt4AzQNX3rbRwrP/McSdueU9uVzlkOTJHx";

/// The secret of [`secret_key`].
const SECRET: &[u8] = b"a secret that issuer and mesh share";

/// 2026, in seconds since 1970.
pub(crate) const NOW: u64 = 1_780_000_000;

/// The public key of tokens by `RS256` and `PS256`.
pub(crate) fn rsa_key(id: &str) -> Value {
    json!({"kty": "RSA", "kid": id, "n": RSA_MODULUS, "e": "AQAB"})
}

/// The public key of tokens by `ES256`.
pub(crate) fn ec_key(id: &str) -> Value {
    let (x, y) = (
        "F90PgiKAQudV0XCjVSzdW_ctqnGA1MGJDZaa33Q2BsA",
        "-cMwJ5yE9keANNuh_SiJVjOK5PT4ntC1ZEctQGDMcVo",
    );
    json!({"kty": "EC", "crv": "P-256", "kid": id, "x": x, "y": y})
}

/// The public key of tokens by `EdDSA`.
pub(crate) fn ed_key(id: &str) -> Value {
    json!({"kty": "OKP", "crv": "Ed25519", "kid": id, "x": "fefmYby5h02WYsdno3zoCkKCuxLITxvaFDpOXF8Nv1I"})
}

/// The key of tokens by `HS256`.
pub(crate) fn secret_key(id: &str) -> Value {
    json!({"kty": "oct", "kid": id, "k": URL_SAFE_NO_PAD.encode(SECRET)})
}

/// A set of keys.
pub(crate) fn set(keys: &[Value]) -> String {
    json!({"keys": keys}).to_string()
}

/// A token by one of the keys above, which its header calls `id`.
pub(crate) fn sign(algorithm: Algorithm, id: Option<&str>, claims: &Value) -> String {
    let der = |text: &str| {
        STANDARD
            .decode(text.replace(char::is_whitespace, ""))
            .unwrap()
    };
    let key = match algorithm {
        Algorithm::RS256 | Algorithm::PS256 => EncodingKey::from_rsa_der(&der(RSA)),
        Algorithm::ES256 => EncodingKey::from_ec_der(&der(EC)),
        Algorithm::EdDSA => EncodingKey::from_ed_der(&der(ED)),
        Algorithm::HS256 => EncodingKey::from_secret(SECRET),
        other => panic!("no key for {other:?}"),
    };
    let mut header = Header::new(algorithm);
    header.kid = id.map(str::to_owned);
    encode(&header, claims, &key).unwrap()
}

/// A token of any content, signed with any secret.
pub(crate) fn forge(header: &Value, claims: &Value, secret: &[u8]) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let key = EncodingKey::from_secret(secret);
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256);
    format!("{message}.{}", signature.unwrap())
}
