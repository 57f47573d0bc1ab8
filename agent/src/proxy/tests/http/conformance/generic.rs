//! What any endpoint must do: sections `generic/1` to `generic/5`.

use super::wire::{
    CONTINUATION, Case, DATA, END_HEADERS, END_STREAM, Expect, HEADERS, PADDED, Script, WHOLE,
    WITH_PRIORITY, case, fields, head, say,
};

pub(super) fn cases() -> Vec<Case> {
    let parts = [starting(), frames(), control_frames(), exchanges(), hpack()];
    parts.into_iter().flatten().collect()
}

fn hello() -> Script {
    say().hello()
}

/// Sections 1 and 2.
fn starting() -> Vec<Case> {
    vec![
        case("generic/1/1 a preface", hello(), Expect::Settings),
        case(
            "generic/2/1 PRIORITY on an idle stream",
            hello().priority(1, 0, 255).get(1),
            Expect::Answer(1),
        ),
        case(
            "generic/2/2 WINDOW_UPDATE on a half-closed (remote) stream",
            hello().get(1).window(1, 100),
            Expect::Answer(1),
        ),
        case(
            "generic/2/3 PRIORITY on a half-closed (remote) stream",
            hello().get(1).priority(1, 0, 255),
            Expect::Answer(1),
        ),
        case(
            "generic/2/4 RST_STREAM on a half-closed (remote) stream",
            hello().get(1).reset(1, 8).ping(),
            Expect::Pong,
        ),
        case(
            "generic/2/5 PRIORITY on a closed stream",
            hello()
                .get(1)
                .hear(Expect::Data(super::BODY.len()))
                .priority(1, 0, 255)
                .ping(),
            Expect::Pong,
        ),
    ]
}

/// Sections 3.1 to 3.3.
fn frames() -> Vec<Case> {
    let get = head("GET", &[]);
    let padded = [&[4][..], &get, &[0; 4]].concat();
    let prioritized = [&[0, 0, 0, 0, 255][..], &get].concat();
    vec![
        case(
            "generic/3.1/1 a DATA frame",
            hello().post(1).data(END_STREAM, 1),
            Expect::Answer(1),
        ),
        case(
            "generic/3.1/2 several DATA frames",
            hello().post(1).data(0, 1).data(END_STREAM, 1),
            Expect::Answer(1),
        ),
        case(
            "generic/3.1/3 a DATA frame with padding",
            hello()
                .post(1)
                .frame(DATA, END_STREAM | PADDED, 1, b"\x06test\0\0\0\0\0\0"),
            Expect::Answer(1),
        ),
        case(
            "generic/3.2/1 a HEADERS frame",
            hello().get(1),
            Expect::Answer(1),
        ),
        case(
            "generic/3.2/2 a HEADERS frame with padding",
            hello().frame(HEADERS, WHOLE | PADDED, 1, &padded),
            Expect::Answer(1),
        ),
        case(
            "generic/3.2/3 a HEADERS frame with priority",
            hello().frame(HEADERS, WHOLE | WITH_PRIORITY, 1, &prioritized),
            Expect::Answer(1),
        ),
        case(
            "generic/3.3/1 PRIORITY with weight 1",
            hello().get(1).priority(1, 0, 0),
            Expect::Answer(1),
        ),
        case(
            "generic/3.3/2 PRIORITY with weight 256",
            hello().get(1).priority(1, 0, 255),
            Expect::Answer(1),
        ),
        case(
            "generic/3.3/3 PRIORITY with a dependency",
            hello().get(1).priority(3, 1, 255),
            Expect::Answer(1),
        ),
        case(
            "generic/3.3/4 PRIORITY with an exclusive dependency",
            hello().get(1).priority(3, 1 << 31 | 1, 255),
            Expect::Answer(1),
        ),
        case(
            "generic/3.3/5 PRIORITY on an idle stream, then a request on a lower one",
            hello().priority(5, 0, 255).get(3),
            Expect::Answer(3),
        ),
    ]
}

/// Sections 3.4 to 3.10.
fn control_frames() -> Vec<Case> {
    let get = head("GET", &[("x-part", "of a whole")]);
    let (one, rest) = get.split_at(20);
    let (two, three) = rest.split_at(20);
    vec![
        case(
            "generic/3.4/1 RST_STREAM",
            hello().post(1).reset(1, 8).ping(),
            Expect::Pong,
        ),
        case(
            "generic/3.5/1 SETTINGS",
            hello().hear(Expect::Ack).settings(&[(3, 100)]),
            Expect::Ack,
        ),
        case("generic/3.7/1 PING", hello().ping(), Expect::Pong),
        case(
            "generic/3.8/1 GOAWAY",
            hello().goaway(0, 0).ping(),
            Expect::PongOrEnd,
        ),
        case(
            "generic/3.9/1 WINDOW_UPDATE of the connection",
            hello().window(0, 1).get(1),
            Expect::Answer(1),
        ),
        case(
            "generic/3.9/2 WINDOW_UPDATE of a stream",
            hello().get(1).window(1, 1),
            Expect::Answer(1),
        ),
        case(
            "generic/3.10/1 a CONTINUATION frame",
            hello()
                .frame(HEADERS, END_STREAM, 1, one)
                .frame(CONTINUATION, END_HEADERS, 1, rest),
            Expect::Answer(1),
        ),
        case(
            "generic/3.10/2 several CONTINUATION frames",
            hello()
                .frame(HEADERS, END_STREAM, 1, one)
                .frame(CONTINUATION, 0, 1, two)
                .frame(CONTINUATION, END_HEADERS, 1, three),
            Expect::Answer(1),
        ),
    ]
}

/// Section 4.
fn exchanges() -> Vec<Case> {
    vec![
        case("generic/4/1 GET", hello().get(1), Expect::Answer(1)),
        case(
            "generic/4/2 HEAD",
            hello().ask(&head("HEAD", &[])),
            Expect::Answer(1),
        ),
        case(
            "generic/4/3 POST",
            hello().post(1).data(END_STREAM, 1),
            Expect::Answer(1),
        ),
        case(
            "generic/4/4 POST with trailers",
            hello()
                .frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &head("POST", &[("trailer", "x-a")]),
                )
                .data(0, 1)
                .frame(HEADERS, WHOLE, 1, &fields(&[("x-a", "b")])),
            Expect::Answer(1),
        ),
    ]
}

/// Section 5: each way to write a field.
fn hpack() -> Vec<Case> {
    const HUFFMAN_NAME: &[u8] = b"\x88\x25\xa8\x49\xe9\x5b\xa9\x7d\x7f";
    const HUFFMAN_VALUE: &[u8] = b"\x89\x25\xa8\x49\xe9\x5b\xb8\xe8\xb4\xbf";
    const NAME: &[u8] = b"\x0acustom-key";
    const VALUE: &[u8] = b"\x0ccustom-value";
    let asked = |field: &[&[u8]]| hello().ask(&[head("GET", &[]), field.concat()].concat());
    let updated = |update: &[u8]| hello().ask(&[update, &head("GET", &[])].concat());
    let rows: [(_, &[&[u8]]); 13] = [
        ("generic/5/1 an indexed field", &[b"\x90"]),
        ("generic/5/2 indexing, name indexed", &[b"\x7a", VALUE]),
        (
            "generic/5/3 the same in Huffman's code",
            &[b"\x7a", HUFFMAN_VALUE],
        ),
        ("generic/5/4 indexing, new name", &[b"\x40", NAME, VALUE]),
        (
            "generic/5/5 the same in Huffman's code",
            &[b"\x40", HUFFMAN_NAME, HUFFMAN_VALUE],
        ),
        (
            "generic/5/6 no indexing, name indexed",
            &[b"\x0f\x2b", VALUE],
        ),
        (
            "generic/5/7 the same in Huffman's code",
            &[b"\x0f\x2b", HUFFMAN_VALUE],
        ),
        ("generic/5/8 no indexing, new name", &[b"\0", NAME, VALUE]),
        (
            "generic/5/9 the same in Huffman's code",
            &[b"\0", HUFFMAN_NAME, HUFFMAN_VALUE],
        ),
        (
            "generic/5/10 never indexed, name indexed",
            &[b"\x1f\x2b", VALUE],
        ),
        (
            "generic/5/11 the same in Huffman's code",
            &[b"\x1f\x2b", HUFFMAN_VALUE],
        ),
        (
            "generic/5/12 never indexed, new name",
            &[b"\x10", NAME, VALUE],
        ),
        (
            "generic/5/13 the same in Huffman's code",
            &[b"\x10", HUFFMAN_NAME, HUFFMAN_VALUE],
        ),
    ];
    let rows = rows.map(|(name, field)| case(name, asked(field), Expect::Answer(1)));
    let mut cases = Vec::from(rows);
    cases.push(case(
        "generic/5/14 an update of the table's size",
        updated(b"\x20"),
        Expect::Answer(1),
    ));
    cases.push(case(
        "generic/5/15 several updates of the table's size",
        updated(b"\x20\x3f\xe1\x1f"),
        Expect::Answer(1),
    ));
    cases
}
