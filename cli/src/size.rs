//! Sizes as people type them.

/// Reads `512m`, `2g`, `1073741824`, `64MiB` as bytes. Units are powers of 1024, as in every container tool.
pub fn bytes(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write 512m, 2g or a number of bytes");
    let lower = text.trim().to_ascii_lowercase();
    let digits = lower.find(|c: char| !c.is_ascii_digit()).unwrap_or(lower.len());
    let number: u64 = lower[..digits].parse().map_err(|_| wrong())?;
    let shift = match &lower[digits..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err(wrong()),
    };
    number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

/// Reads `1`, `0.5` or `2.25` CPUs as thousandths.
pub fn cpu_millis(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a number of CPUs: write 1, 0.5 or 2.25");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let all_digits = |s: &str| s.chars().all(|c| c.is_ascii_digit());
    if !all_digits(whole) || !all_digits(part) || part.len() > 3 || whole.len() > 4 || text.len() == part.len() {
        return Err(wrong());
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| wrong())? };
    let part: u64 = format!("{part:0<3}").parse().map_err(|_| wrong())?;
    Some(whole * 1000 + part).filter(|millis| *millis >= 10).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_people_mean_them() {
        assert_eq!(bytes("512m"), Ok(512 << 20));
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("4096"), Ok(4096));
        for wrong in ["", "0", "m", "12q", "-1", "99999999999g"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cpus_read_as_thousandths() {
        assert_eq!(cpu_millis("1"), Ok(1000));
        assert_eq!(cpu_millis("0.5"), Ok(500));
        assert_eq!(cpu_millis("2.25"), Ok(2250));
        for wrong in ["", "0", "x", "1.2345", "-1", "0.001", "."] {
            assert!(cpu_millis(wrong).is_err(), "{wrong}");
        }
    }
}
