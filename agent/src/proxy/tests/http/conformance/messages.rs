//! What RFC 9113 says of requests, and RFC 7541 of their heads: sections `http2/7` to
//! `http2/8.2` and `hpack/2.3.3` to `hpack/6.3`.

use super::wire::{
    COMPRESSION, Case, END_HEADERS, END_STREAM, Expect, GENERIC, HEADERS, PROTOCOL, PUSH_PROMISE,
    Script, WHOLE, case, fields, head, say,
};

pub(super) fn cases() -> Vec<Case> {
    let parts = [
        codes(),
        fields_of_requests(),
        pseudo_headers(),
        lengths(),
        hpack(),
    ];
    parts.into_iter().flatten().collect()
}

fn hello() -> Script {
    say().hello()
}

/// Sections 7, 8.1 and 8.2.
fn codes() -> Vec<Case> {
    let promise = [&[0, 0, 0, 2][..], &head("GET", &[])].concat();
    vec![
        case(
            "http2/7/1 GOAWAY with an unknown code",
            hello().goaway(0, 0xff).ping(),
            Expect::PongOrEnd,
        ),
        case(
            "http2/7/2 RST_STREAM with an unknown code",
            hello().post(1).reset(1, 0xff).ping(),
            Expect::PongOrEnd,
        ),
        case(
            "http2/8.1/1 a second HEADERS without END_STREAM",
            hello().post(1).post(1),
            Expect::Reset(&[PROTOCOL]),
        ),
        case(
            "http2/8.2/1 PUSH_PROMISE of a client",
            hello().frame(PUSH_PROMISE, END_HEADERS, 1, &promise),
            Expect::End(&[PROTOCOL]),
        ),
    ]
}

/// Sections 8.1.2, 8.1.2.1 and 8.1.2.2.
fn fields_of_requests() -> Vec<Case> {
    let refused = |name, fields: &[(&str, &str)]| {
        let script = hello().ask(&head("GET", fields));
        case(name, script, Expect::Reset(&[PROTOCOL]))
    };
    let late = fields(&[
        (":method", "GET"),
        (":scheme", "http"),
        (":authority", "shop"),
        ("x-first", "regular"),
        (":path", "/"),
    ]);
    vec![
        refused("http2/8.1.2/1 a name in capitals", &[("X-TEST", "ok")]),
        refused(
            "http2/8.1.2.1/1 an unknown pseudo-header",
            &[(":test", "ok")],
        ),
        refused("http2/8.1.2.1/2 one of responses", &[(":status", "200")]),
        case(
            "http2/8.1.2.1/3 one in trailers",
            hello()
                .post(1)
                .data(0, 1)
                .frame(HEADERS, WHOLE, 1, &fields(&[(":method", "200")])),
            Expect::Reset(&[PROTOCOL]),
        )
        .but(Expect::Answer(1)),
        case(
            "http2/8.1.2.1/4 one after a regular field",
            hello().ask(&late),
            Expect::Reset(&[PROTOCOL]),
        ),
        refused(
            "http2/8.1.2.2/1 connection",
            &[("connection", "keep-alive")],
        ),
        refused(
            "http2/8.1.2.2/2 te other than trailers",
            &[("te", "trailers, deflate")],
        ),
    ]
}

/// Section 8.1.2.3.
fn pseudo_headers() -> Vec<Case> {
    const METHOD: (&str, &str) = (":method", "GET");
    const SCHEME: (&str, &str) = (":scheme", "http");
    const PATH: (&str, &str) = (":path", "/");
    const AUTHORITY: (&str, &str) = (":authority", "shop");
    let rows: [(_, &[_]); 7] = [
        (
            "http2/8.1.2.3/1 an empty :path",
            &[METHOD, SCHEME, (":path", ""), AUTHORITY],
        ),
        ("http2/8.1.2.3/2 no :method", &[SCHEME, PATH, AUTHORITY]),
        ("http2/8.1.2.3/3 no :scheme", &[METHOD, PATH, AUTHORITY]),
        ("http2/8.1.2.3/4 no :path", &[METHOD, SCHEME, AUTHORITY]),
        (
            "http2/8.1.2.3/5 :method twice",
            &[METHOD, METHOD, SCHEME, PATH, AUTHORITY],
        ),
        (
            "http2/8.1.2.3/6 :scheme twice",
            &[METHOD, SCHEME, SCHEME, PATH, AUTHORITY],
        ),
        (
            "http2/8.1.2.3/7 :path twice",
            &[METHOD, SCHEME, PATH, PATH, AUTHORITY],
        ),
    ];
    let refused = |(name, block)| {
        let script = hello().ask(&fields(block));
        case(name, script, Expect::Reset(&[PROTOCOL]))
    };
    rows.map(refused).into()
}

/// Section 8.1.2.6.
fn lengths() -> Vec<Case> {
    let post = head("POST", &[("content-length", "1")]);
    let begun = || hello().frame(HEADERS, END_HEADERS, 1, &post);
    vec![
        case(
            "http2/8.1.2.6/1 another length than the DATA has",
            begun().data(END_STREAM, 1),
            Expect::Reset(&[PROTOCOL]),
        ),
        case(
            "http2/8.1.2.6/2 another length than several DATA have",
            begun().data(0, 1).data(END_STREAM, 1),
            Expect::Reset(&[PROTOCOL]),
        ),
    ]
}

fn hpack() -> Vec<Case> {
    let rows: [(_, &[u8]); 6] = [
        ("hpack/2.3.3/1 an indexed field beyond the table", b"\xc6"),
        (
            "hpack/2.3.3/2 a name beyond the table",
            b"\x7f\x07\x05empty",
        ),
        (
            "hpack/5.2/1 more than 7 bits of padding",
            b"\0\x04test\x88\x49\x50\x9f\xff\xff\xff\xff\xff",
        ),
        (
            "hpack/5.2/2 padding of zeros",
            b"\0\x04test\x83\x49\x50\x90",
        ),
        (
            "hpack/5.2/3 the end of the string within it",
            b"\0\x04test\x88\xff\xff\xff\xff\xff\x85\x25\x05",
        ),
        ("hpack/6.1/1 index 0", b"\x80"),
    ];
    let get = head("GET", &[]);
    let refused = |block: &[u8]| hello().ask(block);
    let expected = Expect::End(&[COMPRESSION]);
    let rows = rows
        .map(|(name, field)| case(name, refused(&[&get, field].concat()), expected).but(GENERIC));
    let mut cases = Vec::from(rows);
    cases.push(
        case(
            "hpack/4.2/1 an update of the table's size at the end",
            refused(&[&get[..], b"\x21"].concat()),
            expected,
        )
        .but(GENERIC),
    );
    cases.push(
        case(
            "hpack/6.3/1 a size above the setting",
            refused(&[b"\x3f\xe2\x1f", &get[..]].concat()),
            expected,
        )
        .but(GENERIC),
    );
    cases
}
