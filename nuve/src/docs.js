// Turns openapi.json into forms: one per operation, sent with fetch, the answer shown as it came.

const make = (tag, props = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), props);
  element.append(...children);
  return element;
};

fetch('/openapi.json').then((response) => response.json()).then(show).catch((error) => {
  document.getElementById('operations').textContent = `openapi.json cannot be read: ${error.message}`;
});

function resolve(document_, schema) {
  return schema?.$ref ? schema.$ref.split('/').slice(1).reduce((at, part) => at[part], document_) : schema;
}

/** A schema with what it refers to, and with "or null" taken apart from it. */
function look(document_, schema) {
  const seen = { ...resolve(document_, schema) };
  // What is said beside a reference says more than what it refers to.
  if (schema?.description) seen.description = schema.description;
  const choices = seen.oneOf ?? seen.anyOf;
  if (!choices) return { ...seen, nullable: [seen.type].flat().includes('null') };
  const rest = choices.filter((choice) => choice.type !== 'null');
  if (rest.length !== 1) return { ...seen, choices: rest };
  return { ...look(document_, rest[0]), description: seen.description ?? rest[0].description ?? resolve(document_, rest[0]).description, nullable: rest.length < choices.length };
}

/** A pattern that lets one word pass leaves nothing to choose. */
const oneWord = (seen) => /^\^[\w-]+\$$/.test(seen.pattern ?? '') || seen.enum?.length === 1;

/** A body to start from: each property's example, default, or an empty value of its type. */
function example(document_, schema) {
  const resolved = resolve(document_, schema) ?? {};
  const body = {};
  for (const [name, property] of Object.entries(resolved.properties ?? {})) {
    const value = look(document_, property);
    const required = resolved.required?.includes(name);
    if (!required && oneWord(value)) continue;
    const known = value.example ?? value.default;
    if (known !== undefined) body[name] = known;
    // Who tries a token by name has no such room yet.
    else if (name === 'create' && value.type === 'boolean') body[name] = true;
    else if (required) body[name] = value.enum?.[0] ?? '';
  }
  return JSON.stringify(body, null, 2);
}

/** A type in words: what it is, what it may be, and its bounds. */
function typed(document_, seen) {
  const names = [seen.type].flat().filter((type) => type && type !== 'null');
  let text = seen.choices ? seen.choices.map((choice) => typed(document_, look(document_, choice))).join(' or ')
    : seen.enum ? seen.enum.map((value) => JSON.stringify(value)).join(' | ')
    : seen.items ? `list of ${typed(document_, look(document_, seen.items))}`
    : names.join(' or ') || 'anything';
  const [low, high] = [seen.minimum ?? seen.minLength, seen.maximum ?? seen.maxLength];
  const unit = seen.maxLength === undefined ? '' : ' characters';
  if (low !== undefined && high !== undefined) text += `, ${low} to ${high}${unit}`;
  else if (high !== undefined) text += `, at most ${high}${unit}`;
  if (seen.default !== undefined) text += `, default ${JSON.stringify(seen.default)}`;
  return seen.nullable ? `${text}, or null` : text;
}

/** The fields of an object, those of its parts indented beneath them; `wanted`: it is a request, so it matters what may be left out. */
function fields(document_, schema, wanted, above = []) {
  const seen = look(document_, schema);
  if (seen.items) return fields(document_, seen.items, wanted, above);
  // A type within itself, or one without named fields, ends here.
  if (!seen.properties || above.includes(seen.properties)) return undefined;
  return make('ul', { className: 'fields' }, ...Object.entries(seen.properties).map(([name, property]) => {
    const field = look(document_, property);
    const within = fields(document_, property, wanted, [...above, seen.properties]);
    return make('li', {},
      make('code', { textContent: name }), ' ',
      make('small', { textContent: `${typed(document_, field)}${wanted && seen.required?.includes(name) ? ', required' : ''}` }),
      make('div', { textContent: field.description ?? '' }),
      ...(within ? [within] : []));
  }));
}

/** What an operation takes and gives, to be read beside its form. */
function described(document_, operation) {
  const parts = [];
  const part = (title, help, schema, wanted) => {
    const list = schema && fields(document_, schema, wanted);
    if (list) parts.push(make('details', { className: 'part', open: wanted }, make('summary', {}, title, ' ', make('small', { textContent: help ?? '' })), list));
  };
  part('Body', '', operation.requestBody?.content?.['application/json']?.schema, true);
  const refusals = [];
  for (const [status, answer] of Object.entries(operation.responses ?? {})) {
    const resolved = resolve(document_, answer);
    const kinds = Object.keys(resolved.content ?? {});
    if (kinds.includes('application/problem+json')) refusals.push([status, resolved]);
    else part(`Answer ${status}`, resolved.description, resolved.content?.['application/json']?.schema, false);
  }
  // All refusals are the same document.
  if (refusals.length > 0) {
    const [, first] = refusals[0];
    const list = fields(document_, first.content['application/problem+json'].schema, false);
    parts.push(make('details', { className: 'part' }, make('summary', {}, `Refusals ${refusals.map(([status]) => status).join(', ')}`),
      make('ul', {}, ...refusals.map(([status, { description }]) => make('li', {}, make('code', { textContent: status }), ` ${description ?? ''}`))),
      'Each is a problem document:', ...(list ? [list] : [])));
  }
  return parts;
}

function form(document_, path, method, operation) {
  const inputs = (operation.parameters ?? []).map((parameter) => ({
    parameter,
    input: make('input', { required: parameter.in === 'path', spellcheck: false }),
  }));
  const schema = operation.requestBody?.content?.['application/json']?.schema;
  const body = schema && make('textarea', { value: example(document_, schema), spellcheck: false });
  const answer = make('pre', { hidden: true });
  const result = make('form', {}, ...inputs.map(({ parameter, input }) =>
    make('label', {}, `${parameter.name} `, make('small', { textContent: parameter.description ?? '' }), input)));
  if (body) result.append(make('label', {}, 'body', body));
  result.append(make('button', { textContent: 'Send' }), answer);

  result.addEventListener('submit', async (event) => {
    event.preventDefault();
    let url = path;
    const query = new URLSearchParams();
    for (const { parameter, input } of inputs) {
      if (parameter.in === 'path') url = url.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
      else if (input.value !== '') query.set(parameter.name, input.value);
    }
    if (query.size > 0) url += `?${query}`;
    const headers = {};
    const key = document.getElementById('key').value.trim();
    if (key) headers.authorization = `Bearer ${key}`;
    if (body) headers['content-type'] = 'application/json';
    answer.hidden = false;
    answer.textContent = `${method.toUpperCase()} ${url} …`;
    try {
      const response = await fetch(url, { method, headers, body: body?.value });
      const shown = [`${response.status} ${response.statusText}`];
      for (const name of ['roomlog-version', 'retry-after', 'location']) {
        if (response.headers.has(name)) shown.push(`${name}: ${response.headers.get(name)}`);
      }
      answer.textContent = `${shown.join('\n')}\n\n`;
      // Piece by piece, so that an event stream shows as it comes.
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        answer.textContent += value;
      }
      const [head, ...rest] = answer.textContent.split('\n\n');
      try {
        answer.textContent = `${head}\n\n${JSON.stringify(JSON.parse(rest.join('\n\n')), null, 2)}`;
      } catch {
        // Not JSON: it stays as it came.
      }
    } catch (error) {
      answer.textContent += `\n${error.message}`;
    }
  });
  return result;
}

function show(document_) {
  const list = document.getElementById('operations');
  list.textContent = '';
  for (const [path, methods] of Object.entries(document_.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      if (!['get', 'post', 'delete', 'put', 'patch'].includes(method)) continue;
      const keys = (operation.security ?? []).flatMap(Object.keys).join(' or ');
      list.append(make('details', {},
        make('summary', {}, make('b', { textContent: method.toUpperCase() }), path),
        make('p', {}, operation.summary ?? '', ' ', operation.description ?? '', ' ',
          make('small', { textContent: keys ? `key: ${keys}` : 'no key' })),
        ...described(document_, operation),
        form(document_, path, method, operation)));
    }
  }
}
