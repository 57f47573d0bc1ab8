//! How a strict server reads a client's bytes: another reading of RFC 9112 than the one
//! that it judges, of all bytes at once.

/// One request that is there to its last byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// Method, target and version.
    pub(super) line: Vec<u8>,
    pub(super) body: Vec<u8>,
}

/// What the bytes are.
#[derive(Debug, Default)]
pub(super) struct Reading {
    pub(super) requests: Vec<Whole>,
    /// What comes behind those can be read in two ways.
    pub(super) ambiguous: bool,
}

/// Why there is no more.
enum Stop {
    Cut,
    Ambiguous,
}

impl Reading {
    pub(super) fn of(mut bytes: &[u8]) -> Self {
        let mut reading = Self::default();
        loop {
            match request(&mut bytes) {
                Ok(whole) => reading.requests.push(whole),
                Err(Stop::Cut) => return reading,
                Err(Stop::Ambiguous) => {
                    reading.ambiguous = true;
                    return reading;
                }
            }
        }
    }
}

fn request(bytes: &mut &[u8]) -> Result<Whole, Stop> {
    let line = loop {
        let line = line(bytes)?;
        if !line.is_empty() {
            break line;
        }
    };
    let (mut length, mut chunked) = (None, false);
    while let Some((name, value)) = field(bytes)? {
        match &name[..] {
            "content-length" if length.is_none() && !chunked => {
                let text = String::from_utf8(value).map_err(|_binary| Stop::Ambiguous)?;
                let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                let short = plain && text.len() <= 18;
                let number = text.parse().ok().filter(|_| short);
                length = Some(number.ok_or(Stop::Ambiguous)?);
            }
            "transfer-encoding" if length.is_none() && !chunked => {
                chunked = value.eq_ignore_ascii_case(b"chunked");
                chunked.then_some(()).ok_or(Stop::Ambiguous)?;
            }
            "content-length" | "transfer-encoding" => return Err(Stop::Ambiguous),
            _ => {}
        }
    }
    let body = if chunked {
        chunks(bytes)?
    } else {
        taken(bytes, length.unwrap_or(0))?.to_vec()
    };
    Ok(Whole {
        line: line.to_vec(),
        body,
    })
}

fn chunks(bytes: &mut &[u8]) -> Result<Vec<u8>, Stop> {
    let mut body = Vec::new();
    loop {
        let size = line(bytes)?;
        let digits = size
            .iter()
            .take_while(|byte| byte.is_ascii_hexdigit())
            .count();
        let behind = size[digits..].trim_ascii_start();
        let extended = size.len() == digits || behind.first() == Some(&b';');
        let number = std::str::from_utf8(&size[..digits]).unwrap_or_default();
        let number = u64::from_str_radix(number, 16).ok();
        let number = number.filter(|_| extended && digits <= 15);
        let number = number.ok_or(Stop::Ambiguous)?;
        if number == 0 {
            break;
        }
        body.extend_from_slice(taken(bytes, number)?);
        if !line(bytes)?.is_empty() {
            return Err(Stop::Ambiguous);
        }
    }
    while let Some((name, _)) = field(bytes)? {
        if ["content-length", "transfer-encoding", "host"].contains(&&name[..]) {
            return Err(Stop::Ambiguous);
        }
    }
    Ok(body)
}

/// A header; `None` where the line is empty.
fn field(bytes: &mut &[u8]) -> Result<Option<(String, Vec<u8>)>, Stop> {
    let line = line(bytes)?;
    if line.is_empty() {
        return Ok(None);
    }
    let mut parts = line.splitn(2, |byte| *byte == b':');
    let (name, value) = (parts.next(), parts.next());
    let (name, value) = name.zip(value).ok_or(Stop::Ambiguous)?;
    let name = http::HeaderName::from_bytes(name).map_err(|_no_token| Stop::Ambiguous)?;
    Ok(Some((name.to_string(), value.trim_ascii().to_vec())))
}

/// A line without its end.
fn line<'b>(bytes: &mut &'b [u8]) -> Result<&'b [u8], Stop> {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .ok_or(Stop::Cut)?;
    let (line, rest) = bytes.split_at(end + 1);
    *bytes = rest;
    let line = line.strip_suffix(b"\r\n").ok_or(Stop::Ambiguous)?;
    let odd = line.iter().any(|byte| matches!(byte, b'\r' | 0));
    (!odd).then_some(line).ok_or(Stop::Ambiguous)
}

fn taken<'b>(bytes: &mut &'b [u8], count: u64) -> Result<&'b [u8], Stop> {
    let count = usize::try_from(count).map_err(|_huge| Stop::Cut)?;
    let (taken, rest) = bytes.split_at_checked(count).ok_or(Stop::Cut)?;
    *bytes = rest;
    Ok(taken)
}
