/** How our camera is encoded. */

import type { types as mediasoup } from 'mediasoup-client';
import type { VideoWish } from './devices.js';

/** Lines below which several sizes of the same picture are not worth their bits. */
const SIMULCAST_FROM = 480;

/** bit/s for the full size: what looks clean for a talking head, by lines. */
function fullRate(height: number): number {
  if (height >= 1080) return 2_500_000;
  if (height >= 720) return 1_500_000;
  if (height >= 480) return 800_000;
  return 400_000;
}

/** Three sizes (¼, ½, 1) of large pictures, so that a receiver gets no more than its tile can show; else one. */
export function videoEncodings(video: VideoWish, simulcast: boolean): mediasoup.RtpEncodingParameters[] {
  const full = fullRate(video.height);
  if (!simulcast || video.height < SIMULCAST_FROM) return [{ maxBitrate: full }];
  return [
    { rid: 'q', scaleResolutionDownBy: 4, maxBitrate: Math.round(full / 10), scalabilityMode: 'L1T3' },
    { rid: 'h', scaleResolutionDownBy: 2, maxBitrate: Math.round(full / 3), scalabilityMode: 'L1T3' },
    { rid: 'f', scaleResolutionDownBy: 1, maxBitrate: full, scalabilityMode: 'L1T3' },
  ];
}
