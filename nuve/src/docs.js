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

/** A body to start from: each property's example, default, or an empty value of its type. */
function example(document_, schema) {
  const resolved = resolve(document_, schema) ?? {};
  const body = {};
  for (const [name, property] of Object.entries(resolved.properties ?? {})) {
    const value = resolve(document_, property) ?? {};
    const required = resolved.required?.includes(name);
    const known = value.example ?? value.default;
    if (known !== undefined) body[name] = known;
    else if (required) body[name] = value.enum?.[0] ?? '';
  }
  return JSON.stringify(body, null, 2);
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
        form(document_, path, method, operation)));
    }
  }
}
