// People at this partition: they log in here with nobody else up, for a session that is good here; what a front begins is good here too.
import { createSigner, createVerifier } from '@muster/server/global/signature'
import { createSessions, type Sessions } from '@muster/server/sessions/sessions'
import type { Core } from './core.ts'

/** Whose configuration is taken here, its sessions are good here, also where that is learnt later. Replicas share the partition's key, so that a session is good at all of them. */
export function sessionsHere(core: Pick<Core, 'seal' | 'configuration' | 'log'>): Sessions {
  const { seal, configuration, log } = core
  const signer = createSigner(seal.sessionSeed(), 'session')
  return createSessions({
    signer,
    verifier: { check: session => createVerifier([signer.publicKey, ...configuration.trustedKeys], 'session').check(session) },
    validAt: 'here',
    documents: () => configuration.content?.documents,
    log,
  })
}
