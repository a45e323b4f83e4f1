// Why a certificate was not believed, from the failure of a connection: what is to be done differs.

/** `untrusted`: not from an authority that is known; `out-of-time`: not good at this time; `wrong-name`: good, but somebody else's; `bad`: anything else. */
export type Distrust = 'untrusted' | 'out-of-time' | 'wrong-name' | 'bad'

/** OpenSSL's codes of verification, as Node has them in `code`, and Node's own for names. */
const codes: Readonly<Record<string, Distrust>> = {
  SELF_SIGNED_CERT_IN_CHAIN: 'untrusted',
  DEPTH_ZERO_SELF_SIGNED_CERT: 'untrusted',
  UNABLE_TO_GET_ISSUER_CERT: 'untrusted',
  UNABLE_TO_GET_ISSUER_CERT_LOCALLY: 'untrusted',
  UNABLE_TO_VERIFY_LEAF_SIGNATURE: 'untrusted',
  CERT_SIGNATURE_FAILURE: 'untrusted',
  CERT_HAS_EXPIRED: 'out-of-time',
  CERT_NOT_YET_VALID: 'out-of-time',
  ERR_TLS_CERT_ALTNAME_INVALID: 'wrong-name',
}
/** fetch and the NATS client have the failure of TLS one or two levels deeper. */
const deepest = 4

/** Undefined: it failed for another reason. */
export function distrustOf(error: unknown): Distrust | undefined {
  let at = error as NodeJS.ErrnoException | undefined
  for (let depth = 0; at !== undefined && at !== null && depth < deepest; depth++, at = at.cause as typeof at) {
    const code = String(at.code ?? '')
    if (codes[code] !== undefined) return codes[code]
    if (/CERT|UNABLE_TO_VERIFY/.test(code)) return 'bad'
  }
  return undefined
}
