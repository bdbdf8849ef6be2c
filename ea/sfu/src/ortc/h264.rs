//! H264 `profile-level-id` (RFC 6184 §8.1): which profiles are the same, and which level an answer names.

use roomlog_bus::ortc::{FmtpParameters, FmtpValue};

/// The profiles WebRTC endpoints negotiate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Profile {
    ConstrainedBaseline,
    Baseline,
    Main,
    ConstrainedHigh,
    High,
    PredictiveHigh444,
}

/// The `level_idc` that stands for level 1b where constraint_set3 is set, for 1.1 where it is not.
const LEVEL_IDC_1_1: u8 = 11;
const CONSTRAINT_SET3: u8 = 0x10;

/// `level_idc` of the levels of H.264 table A-1 up to 5.2, the last one browsers know.
const LEVELS: [u8; 16] = [10, 11, 12, 13, 20, 21, 22, 30, 31, 32, 40, 41, 42, 50, 51, 52];

/// A level in ascending order: 1b lies between 1 and 1.1, so levels are ranked by twice their `level_idc`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Level(u8);

impl Level {
    const L1_B: Self = Self(21);

    fn from_idc(idc: u8, iop: u8) -> Option<Self> {
        if idc == LEVEL_IDC_1_1 && iop & CONSTRAINT_SET3 != 0 {
            Some(Self::L1_B)
        } else {
            LEVELS.contains(&idc).then(|| Self(idc * 2))
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProfileLevelId {
    profile: Profile,
    level: Level,
}

/// `profile_idc`, mask and value of `profile_iop`, the profile: RFC 6184 §8.1, table 5.
const PATTERNS: [(u8, u8, u8, Profile); 9] = [
    (0x42, 0x4f, 0x40, Profile::ConstrainedBaseline),
    (0x4d, 0x8f, 0x80, Profile::ConstrainedBaseline),
    (0x58, 0xcf, 0xc0, Profile::ConstrainedBaseline),
    (0x42, 0x4f, 0x00, Profile::Baseline),
    (0x58, 0xcf, 0x80, Profile::Baseline),
    (0x4d, 0xaf, 0x00, Profile::Main),
    (0x64, 0xff, 0x00, Profile::High),
    (0x64, 0xff, 0x0c, Profile::ConstrainedHigh),
    (0xf4, 0xff, 0x00, Profile::PredictiveHigh444),
];

impl ProfileLevelId {
    /// What an absent `profile-level-id` means to browsers: constrained baseline 3.1, not the baseline 1 of RFC 6184.
    const DEFAULT: Self = Self { profile: Profile::ConstrainedBaseline, level: Level(62) };

    fn parse(text: &str) -> Option<Self> {
        if text.len() != 6 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let [_, idc, iop, level] = u32::from_str_radix(text, 16).ok()?.to_be_bytes();
        let level = Level::from_idc(level, iop)?;
        let (.., profile) = *PATTERNS.iter().find(|(i, mask, value, _)| *i == idc && iop & mask == *value)?;
        Some(Self { profile, level })
    }

    /// Browsers send text here; a number is another document's mistake and matches nothing.
    fn of(parameters: &FmtpParameters) -> Option<Self> {
        match given(parameters) {
            None => Some(Self::DEFAULT),
            Some(FmtpValue::Text(text)) => Self::parse(text),
            Some(_) => None,
        }
    }

    /// Canonical text; none for level 1b of a profile that has no such level.
    fn text(self) -> Option<String> {
        if self.level == Level::L1_B {
            return match self.profile {
                Profile::ConstrainedBaseline => Some("42f00b".to_owned()),
                Profile::Baseline => Some("42100b".to_owned()),
                Profile::Main => Some("4d100b".to_owned()),
                Profile::ConstrainedHigh | Profile::High | Profile::PredictiveHigh444 => None,
            };
        }
        let prefix = match self.profile {
            Profile::ConstrainedBaseline => "42e0",
            Profile::Baseline => "4200",
            Profile::Main => "4d00",
            Profile::ConstrainedHigh => "640c",
            Profile::High => "6400",
            Profile::PredictiveHigh444 => "f400",
        };
        Some(format!("{prefix}{:02x}", self.level.0 / 2))
    }
}

/// The parameter, where it says anything (empty text and 0 say nothing).
fn given(parameters: &FmtpParameters) -> Option<&FmtpValue> {
    parameters.get("profile-level-id").filter(|value| match value {
        FmtpValue::Text(text) => !text.is_empty(),
        other => other.as_integer() != Some(0),
    })
}

fn allows_asymmetry(parameters: &FmtpParameters) -> bool {
    match parameters.get("level-asymmetry-allowed") {
        Some(FmtpValue::Text(text)) => text == "1",
        Some(other) => other.as_integer() == Some(1),
        None => false,
    }
}

/// Whether both sides mean the same profile, at whatever level.
pub(super) fn same_profile(a: &FmtpParameters, b: &FmtpParameters) -> bool {
    match (ProfileLevelId::of(a), ProfileLevelId::of(b)) {
        (Some(a), Some(b)) => a.profile == b.profile,
        _ => false,
    }
}

/// The `profile-level-id` to answer an offer with: the own level where both sides allow asymmetry, else the lower of the two
/// (RFC 6184 §8.2.2). None where neither names one, or the profiles differ.
pub(super) fn answer(own: &FmtpParameters, offered: &FmtpParameters) -> Option<String> {
    if given(own).is_none() && given(offered).is_none() {
        return None;
    }
    let (a, b) = (ProfileLevelId::of(own)?, ProfileLevelId::of(offered)?);
    if a.profile != b.profile {
        return None;
    }
    let asymmetric = allows_asymmetry(own) && allows_asymmetry(offered);
    let level = if asymmetric { a.level } else { a.level.min(b.level) };
    ProfileLevelId { profile: a.profile, level }.text()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(id: &str, asymmetry: i64) -> FmtpParameters {
        FmtpParameters::from([
            ("profile-level-id".into(), FmtpValue::Text(id.into())),
            ("level-asymmetry-allowed".into(), FmtpValue::Integer(asymmetry)),
        ])
    }

    #[test]
    fn spellings_of_constrained_baseline_are_one_profile() {
        for id in ["42e01f", "42c00a", "4d801f", "58c01f", "42F00B"] {
            assert!(same_profile(&parameters("42e01f", 1), &parameters(id, 1)), "{id}");
        }
        for id in ["42001f", "4d001f", "64001f", "640c1f", "f4001f", "42e0ff", "zz", "42e01", ""] {
            let same = same_profile(&parameters("42e01f", 1), &parameters(id, 1));
            assert_eq!(same, id.is_empty(), "{id:?}");
        }
    }

    #[test]
    fn the_answer_takes_the_lower_level_unless_both_allow_asymmetry() {
        let high = parameters("42e034", 1);
        assert_eq!(answer(&high, &parameters("42e01f", 1)).as_deref(), Some("42e034"));
        assert_eq!(answer(&high, &parameters("42e01f", 0)).as_deref(), Some("42e01f"));
        assert_eq!(answer(&high, &parameters("4d001f", 0)), None);
    }

    #[test]
    fn level_1b_lies_between_1_and_1_1() {
        let b = parameters("42f00b", 0);
        assert_eq!(answer(&b, &parameters("42e00b", 0)).as_deref(), Some("42f00b"));
        assert_eq!(answer(&b, &parameters("42e00a", 0)).as_deref(), Some("42e00a"));
    }
}
