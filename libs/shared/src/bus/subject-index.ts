// Who listens to a subject: a tree by token, with NATS's wildcards. Used by the embedded broker and by the in-process bus, so that
// both match exactly alike.

interface Branch<T> {
  values: Set<T>
  /** Listeners of `…>`: one or more further tokens. */
  rest: Set<T>
  literals: Map<string, Branch<T>>
  any: Branch<T> | undefined
}

/** Values filed under subject patterns, found by subject. Not a cache: inbox subjects are new each time, and a walk costs about 0.3 µs. */
export class SubjectIndex<T> {
  readonly #root: Branch<T> = newBranch()

  /** Files `value` under `pattern`, which must satisfy {@link isSubscribable}. */
  add(pattern: string, value: T): void {
    let branch = this.#root
    for (const token of pattern.split('.')) {
      if (token === '>') {
        branch.rest.add(value)
        return
      }
      branch = childOf(branch, token)
    }
    branch.values.add(value)
  }

  /** Takes `value` out again. Harmless when it is not there. */
  remove(pattern: string, value: T): void {
    removeFrom(this.#root, pattern.split('.'), 0, value)
  }

  /** Appends to `found` every value whose pattern matches `subject`, each once. */
  match(subject: string, found: T[]): void {
    collect(this.#root, subject, 0, found)
  }
}

/** Whether a subscription to this pattern makes sense: no empty token, no white space, `>` only at the end. */
export function isSubscribable(pattern: string): boolean {
  if (pattern === '' || /\s/.test(pattern)) return false
  const tokens = pattern.split('.')
  return tokens.every((token, index) => token !== '' && (token !== '>' || index === tokens.length - 1))
}

/** Whether a message can be sent to it: as {@link isSubscribable}, and without wildcards. */
export function isPublishable(subject: string): boolean {
  return isSubscribable(subject) && !/(^|\.)[*>](\.|$)/.test(subject)
}

function newBranch<T>(): Branch<T> {
  return { values: new Set(), rest: new Set(), literals: new Map(), any: undefined }
}

function childOf<T>(branch: Branch<T>, token: string): Branch<T> {
  if (token === '*') {
    branch.any ??= newBranch()
    return branch.any
  }
  let child = branch.literals.get(token)
  if (!child) {
    child = newBranch()
    branch.literals.set(token, child)
  }
  return child
}

function collect<T>(branch: Branch<T>, subject: string, from: number, found: T[]): void {
  for (const value of branch.rest) found.push(value)
  const dot = subject.indexOf('.', from)
  const token = dot < 0 ? subject.slice(from) : subject.slice(from, dot)
  const literal = branch.literals.get(token)
  if (dot < 0) {
    if (literal) for (const value of literal.values) found.push(value)
    if (branch.any) for (const value of branch.any.values) found.push(value)
    return
  }
  if (literal) collect(literal, subject, dot + 1, found)
  if (branch.any) collect(branch.any, subject, dot + 1, found)
}

/** Also prunes: every connection has inbox patterns of its own, and a year of reconnects would else fill the tree. */
function removeFrom<T>(branch: Branch<T>, tokens: string[], depth: number, value: T): void {
  const token = tokens[depth]
  if (token === undefined) {
    branch.values.delete(value)
    return
  }
  if (token === '>') {
    branch.rest.delete(value)
    return
  }
  const child = token === '*' ? branch.any : branch.literals.get(token)
  if (!child) return
  removeFrom(child, tokens, depth + 1, value)
  if (child.values.size || child.rest.size || child.literals.size || child.any) return
  if (token === '*') branch.any = undefined
  else branch.literals.delete(token)
}
