// Checks passwords: a few at a time, because each takes 19 MiB and a thread, and with the same work for a user that is not there.
import { Refusal } from '@muster/shared/errors'
import { hashPassword, isPassword } from '@muster/shared/password'

/** Threads of libuv are four, and DNS and files want some too. */
const mostAtOnce = 2
/** At 30 checks a second, a second's worth. */
const mostWaiting = 32

export class Passwords {
  #running = 0
  readonly #waiting: (() => void)[] = []
  /** Compared with where there is no hash, so that this takes as long. */
  #nobodys: Promise<string> | undefined

  /** Whether the password is that of `hash`; false where there is none. Throws `overloaded` where too many wait, and what `signal` aborts with. */
  async check(password: string, hash: string | undefined, signal: AbortSignal): Promise<boolean> {
    await this.#turn()
    try {
      signal.throwIfAborted()
      this.#nobodys ??= hashPassword('nobody has this password')
      const nobodys = await this.#nobodys
      const isRight = await isPassword(password, hash ?? nobodys)
      return isRight && hash !== undefined
    } finally {
      this.#end()
    }
  }

  /** The hash of a new password. Throws as {@link check} does. */
  async hash(password: string, signal: AbortSignal): Promise<string> {
    await this.#turn()
    try {
      signal.throwIfAborted()
      return await hashPassword(password)
    } finally {
      this.#end()
    }
  }

  #end(): void {
    const next = this.#waiting.shift()
    if (next) next()
    else this.#running--
  }

  /** Resolves when it is this check's turn; a turn that ends is handed on. */
  async #turn(): Promise<void> {
    if (this.#running < mostAtOnce) {
      this.#running++
      return
    }
    if (this.#waiting.length >= mostWaiting)
      throw new Refusal('overloaded', `${mostWaiting} others wait for their passwords to be checked; try again in a moment`)
    await new Promise<void>(resolve => this.#waiting.push(resolve))
  }
}
