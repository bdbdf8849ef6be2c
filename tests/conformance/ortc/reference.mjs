// Reads {"cases": [...], "routers": [...]} from standard input and prints what mediasoup answers to each, in order.
//
// A case is a producer's way to one consumer: {router, kind, params, caps, mid, ssrc: {mapped, consumer, pipe, pipeRtx}, retransmit}.
// Each step's answer is {ok: value} or {error: name, message}; steps after a refused one are null. SSRCs come from the case.

import { createRequire } from 'node:module';

const require = createRequire(import.meta.url);
// By file: the package does not export its inner modules.
const inner = (name) => require(`./node_modules/mediasoup/node/lib/${name}.js`);
const ortc = inner('ortc');
const utils = inner('utils');

let numbers = [];
utils.generateRandomNumber = () => {
	if (numbers.length === 0) {
		throw new Error('the reference drew a random number that the case does not give');
	}
	return numbers.shift();
};

// The answer is frozen as JSON at once: later steps change documents in place.
function step(run) {
	try {
		return { ok: JSON.parse(JSON.stringify(run() ?? null)) };
	} catch (error) {
		return { error: error.name, message: error.message };
	}
}

const clone = (value) => JSON.parse(JSON.stringify(value));

function answer({ router, kind, params, caps, mid, ssrc, retransmit }) {
	const answers = { params: null, mapping: null, consumable: null, caps: null, canConsume: null, consumer: null, pipe: null };
	[router, params, caps] = [router, params, caps].map(clone);
	ortc.validateAndNormalizeRtpCapabilities(router);

	answers.caps = step(() => ortc.validateAndNormalizeRtpCapabilities(caps));
	answers.params = step(() => ortc.validateAndNormalizeRtpParameters(params));
	if (answers.params.error) return answers;
	// As the transport does before it asks for the mapping.
	if (params.encodings.length === 0) params.encodings = [{}];

	let mapping, consumable;
	numbers = [ssrc.mapped];
	answers.mapping = step(() => (mapping = ortc.getProducerRtpParametersMapping(params, router)));
	if (answers.mapping.error) return answers;
	answers.consumable = step(() => (consumable = ortc.getConsumableRtpParameters(kind, params, router, mapping)));
	if (answers.consumable.error) return answers;

	numbers = [ssrc.pipe, ssrc.pipeRtx];
	answers.pipe = step(() =>
		ortc.getPipeConsumerRtpParameters({ consumableRtpParameters: clone(consumable), enableRtx: retransmit }),
	);
	if (answers.caps.error) return answers;
	answers.canConsume = step(() => ortc.canConsume(clone(consumable), clone(caps)));
	numbers = [ssrc.consumer];
	answers.consumer = step(() => ({
		...ortc.getConsumerRtpParameters({
			consumableRtpParameters: clone(consumable),
			remoteRtpCapabilities: caps,
			pipe: false,
			// The transport's default.
			enableRtx: kind === 'video',
		}),
		mid,
	}));
	return answers;
}

let input = '';
for await (const chunk of process.stdin.setEncoding('utf8')) input += chunk;
const { cases = [], routers = [] } = JSON.parse(input);
// Also lets the module learn the header extension that pipes get.
ortc.generateRouterRtpCapabilities([]);
process.stdout.write(
	JSON.stringify({
		routers: routers.map((mediaCodecs) => step(() => ortc.generateRouterRtpCapabilities(clone(mediaCodecs)))),
		cases: cases.map(answer),
	}),
);
