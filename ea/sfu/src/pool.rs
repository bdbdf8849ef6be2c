//! Memory of packets that nobody keeps any more, used again for those that come.

use std::{collections::VecDeque, rc::Rc};

use crate::{history::Stored, rtp::RtpHeader};

/// Packets remembered at most. Consumers keep 1024 to send them again; what is beyond that is allocated and freed as it comes.
const REMEMBERED: usize = 1100;

/// Free packets that are kept for those to come: more than come in one turn of the worker, so that what one turn frees the next one needs.
const SPARE: usize = 64;

/// The packets of one stream, oldest first. As long as somebody keeps one, it is not free.
#[derive(Debug, Default)]
pub struct PacketPool {
    packets: VecDeque<Rc<Stored>>,
}

impl PacketPool {
    /// Keeps a packet, in the memory of one that nobody keeps if there is one.
    pub fn store(&mut self, bytes: &[u8], header: RtpHeader) -> Rc<Stored> {
        let is_free =
            |index: usize| self.packets.get(index).is_some_and(|packet| Rc::strong_count(packet) == 1);
        let (free, plenty) = (is_free(0), is_free(SPARE));
        if plenty {
            self.packets.pop_front();
        }
        let free = free.then(|| self.packets.pop_front()).flatten();
        let mut packet = free.filter(|packet| Rc::strong_count(packet) == 1).unwrap_or_else(|| {
            Rc::new(Stored {
                bytes: Vec::with_capacity(bytes.len().next_multiple_of(512)),
                header: header.clone(),
            })
        });
        match Rc::get_mut(&mut packet) {
            Some(stored) => {
                stored.bytes.clear();
                stored.bytes.extend_from_slice(bytes);
                stored.header = header;
            }
            // Not reached: nobody else keeps it.
            None => packet = Rc::new(Stored { bytes: bytes.to_vec(), header }),
        }
        if self.packets.len() < REMEMBERED {
            self.packets.push_back(packet.clone());
        }
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(pool: &mut PacketPool, number: u8) -> Rc<Stored> {
        let mut bytes = [number; 20];
        bytes[0] = 0x80;
        pool.store(&bytes, RtpHeader::parse(&bytes).unwrap())
    }

    #[test]
    fn memory_is_used_again_once_nobody_keeps_the_packet_and_not_before() {
        let mut pool = PacketPool::default();
        let kept = store(&mut pool, 1);
        let other = store(&mut pool, 2);
        assert_eq!((kept.bytes[1], other.bytes[1]), (1, 2));
        let memory = Rc::as_ptr(&kept);
        drop(kept);
        let third = store(&mut pool, 3);
        assert_eq!((Rc::as_ptr(&third), third.bytes[1], other.bytes[1]), (memory, 3, 2));
    }

    #[test]
    fn the_pool_shrinks_to_what_is_kept() {
        let mut pool = PacketPool::default();
        let kept: Vec<_> = (0..200).map(|n| store(&mut pool, n)).collect();
        assert_eq!(pool.packets.len(), 200);
        drop(kept);
        for n in 0..250 {
            store(&mut pool, n);
        }
        assert_eq!(pool.packets.len(), SPARE);
        let many: Vec<_> = (0..2 * REMEMBERED).map(|_| store(&mut pool, 7)).collect();
        assert_eq!((pool.packets.len(), many.len()), (REMEMBERED, 2 * REMEMBERED));
    }
}
